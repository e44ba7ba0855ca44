"""Tables of the reader: which character, command or word means what."""


def listed(names: str) -> list[str]:
    """Names separated by space."""
    return names.split()


GREEK = listed(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron rho sigma tau "
    "upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega"
)
_GREEK_LETTERS = dict(zip("αβγδεζηθικλμνξορστυφχψωΓΔΘΛΞΣΥΦΨΩ", GREEK, strict=True))
_SUPERSCRIPTS = {char: f"^{{{plain}}}" for char, plain in zip("⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ", "0123456789n", strict=True)}
_SUBSCRIPTS = {char: f"_{{{plain}}}" for char, plain in zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True)}
_VULGAR = {
    char: f"\\frac{{{top}}}{{{bottom}}}"
    for char, top, bottom in [("½", 1, 2), ("⅓", 1, 3), ("⅔", 2, 3), ("¼", 1, 4), ("¾", 3, 4), ("⅕", 1, 5), ("⅛", 1, 8)]
}

CHARACTERS = str.maketrans(
    {char: f"\\{name} " for char, name in _GREEK_LETTERS.items()}
    | _SUPERSCRIPTS
    | _SUBSCRIPTS
    | _VULGAR
    | dict.fromkeys("−–—‐‑‒﹣－", "-")
    | dict.fromkeys("×⋅·∙•∗", "*")
    | dict.fromkeys("“”„", '"')
    | dict.fromkeys("’‘′", "'")
    | dict.fromkeys("₹₽₩₺₫", "\\money ")
    | {
        "¢": "\\text{ cents}",
        "€": "\\euro ",
        "£": "\\pounds ",
        "¥": "\\yen ",
        "⁻": "^{-}",
        "÷": "/",
        "∕": "/",
        "⁄": "/",
        "″": "''",
        "π": "\\pi ",
        "ϕ": "\\phi ",
        "ϵ": "\\epsilon ",
        "ϑ": "\\theta ",
        "Π": "\\Pi ",
        "ℝ": "\\mathbb{R}",
        "ℤ": "\\mathbb{Z}",
        "ℕ": "\\mathbb{N}",
        "ℚ": "\\mathbb{Q}",
        "ℂ": "\\mathbb{C}",
        "∞": "\\infty ",
        "√": "\\sqrt ",
        "∛": "\\sqrt[3] ",
        "≤": "\\le ",
        "≦": "\\le ",
        "⩽": "\\le ",
        "≥": "\\ge ",
        "≧": "\\ge ",
        "⩾": "\\ge ",
        "≠": "\\ne ",
        "≈": "\\approx ",
        "≡": "\\equiv ",
        "±": "\\pm ",
        "∓": "\\mp ",
        "∪": "\\cup ",
        "∩": "\\cap ",
        "∖": "\\setminus ",
        "∈": "\\in ",
        "∅": "\\emptyset ",
        "∣": "\\mid ",
        "∥": "\\parallel ",
        "⊥": "\\perp ",
        "∠": "\\angle ",
        "△": "\\triangle ",
        "→": "\\to ",
        "⇒": "\\Rightarrow ",
        "⌊": "\\lfloor ",
        "⌋": "\\rfloor ",
        "⌈": "\\lceil ",
        "⌉": "\\rceil ",
        "⟨": "\\langle ",
        "⟩": "\\rangle ",
        "°": "\\degree ",
        "º": "\\degree ",
        "˚": "\\degree ",
        "…": "\\ldots ",
        "⋯": "\\ldots ",
        "，": ",",
        "；": ";",
        "：": ":",
        "、": ",",
        "。": ".",
        "（": "(",
        "）": ")",
    }
)

MARKS = {
    "**": ("op", "^"),
    "<=": ("rel", "<="),
    ">=": ("rel", ">="),
    "=<": ("rel", "<="),
    "==": ("rel", "="),
    ":=": ("rel", "="),
    "!=": ("rel", "!="),
    "...": ("sym", "…"),
    "+/-": ("op", "pm"),
    "-/+": ("op", "mp"),
    "+-": ("op", "pm"),
    "+": ("op", "+"),
    "-": ("op", "-"),
    "*": ("op", "*"),
    "/": ("op", "/"),
    "^": ("op", "^"),
    "_": ("op", "_"),
    "!": ("op", "!"),
    "%": ("op", "%"),
    "'": ("op", "'"),
    "(": ("open", "("),
    ")": ("close", ")"),
    "[": ("open", "["),
    "]": ("close", "]"),
    "{": ("open", "{"),
    "}": ("close", "}"),
    "|": ("bar", "|"),
    "=": ("rel", "="),
    "<": ("rel", "<"),
    ">": ("rel", ">"),
    ",": ("sep", ","),
    ";": ("sep", ";"),
    ":": ("colon", ":"),
    "&": ("col", "&"),
}

FUNCTIONS = listed(
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth ln lg log exp "
    "max min gcd lcm cis det"
)
_ASCII_FUNCTIONS = {
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
    "floor": "floor",
    "ceil": "ceil",
    "abs": "abs",
    "cbrt": "cbrt",
}

COMMANDS = (
    {
        name: ("sym", name)
        for name in [*GREEK, "Pi", "ell", "hbar", "mho", "partial", "nabla", "odot", "aleph", "star", "top"]
    }
    | {name: ("func", name) for name in FUNCTIONS}
    | {name: ("cmd", name) for name in ("frac", "binom", "sqrt", "sum", "prod", "pmod", "int", "lim")}
    | {name: ("cmd", "frac") for name in ("dfrac", "tfrac", "cfrac", "nicefrac", "sfrac", "xfrac")}
    | {name: ("cmd", "binom") for name in ("dbinom", "tbinom")}
    | {name: ("accent", "") for name in ("vec", "overrightarrow", "overleftrightarrow", "widehat", "boxed", "fbox")}
    | {
        name: ("accent", name)
        for name in ("overline", "bar", "hat", "tilde", "overparen", "wideparen", "overarc", "dot", "ddot", "widetilde")
    }
    | {"underline": ("accent", "")}
    | {name: ("rel", "<=") for name in ("le", "leq", "leqslant", "leqq")}
    | {name: ("rel", ">=") for name in ("ge", "geq", "geqslant", "geqq")}
    | {name: ("rel", "!=") for name in ("ne", "neq")}
    | {name: ("rel", "~") for name in ("approx", "simeq", "thickapprox", "doteq", "approxeq", "fallingdotseq")}
    | {name: ("rel", "->") for name in ("to", "rightarrow", "mapsto", "longrightarrow")}
    | {name: ("rel", "=>") for name in ("Rightarrow", "implies", "Longrightarrow")}
    | {name: ("rel", "<=>") for name in ("iff", "Leftrightarrow", "Longleftrightarrow")}
    | {name: ("rel", name) for name in ("in", "notin", "equiv", "cong", "parallel", "perp", "subset", "subseteq")}
    | {name: ("rel", name) for name in ("propto", "nmid", "sim")}
    | {"lt": ("rel", "<"), "gt": ("rel", ">"), "eq": ("rel", "=")}
    | {name: ("op", "*") for name in ("times", "cdot", "ast", "cdotp", "bullet")}
    | {"div": ("op", "/"), "pm": ("op", "pm"), "mp": ("op", "mp"), "bmod": ("op", "mod"), "mod": ("op", "mod")}
    | {"%": ("op", "%"), "circ": ("op", "deg"), "degree": ("op", "deg"), "prime": ("op", "'"), "!": ("op", "!")}
    | {"cup": ("op", "union"), "bigcup": ("op", "union"), "cap": ("op", "intersection")}
    | {"setminus": ("op", "minus"), "backslash": ("op", "minus"), "choose": ("op", "choose"), "over": ("op", "over")}
    | {"land": ("sep", "and"), "wedge": ("sep", "and"), "lor": ("sep", "or"), "vee": ("sep", "or")}
    | {
        "varepsilon": ("sym", "epsilon"),
        "varphi": ("sym", "phi"),
        "vartheta": ("sym", "theta"),
        "imath": ("const", "i"),
    }
    | {"varrho": ("sym", "rho"), "varsigma": ("sym", "sigma"), "varkappa": ("sym", "kappa")}
    | {
        "pi": ("const", "pi"),
        "infty": ("const", "inf"),
        "emptyset": ("const", "empty"),
        "varnothing": ("const", "empty"),
    }
    | {name: ("const", name) for name in ("R", "Z", "N", "Q", "C")}
    | {name: ("sym", "…") for name in ("ldots", "dots", "cdots", "dotsc", "dotsb", "vdots")}
    | {name: ("prefix", "∠") for name in ("angle", "measuredangle", "sphericalangle")}
    | {
        "triangle": ("prefix", "△"),
        "$": ("currency", "$"),
        "\\": ("row", ";"),
        "newline": ("row", ";"),
        "cr": ("row", ";"),
    }
    | {"{": ("open", "set"), "lbrace": ("open", "set"), "}": ("close", "set"), "rbrace": ("close", "set")}
    | {"langle": ("open", "<"), "rangle": ("close", ">"), "lbrack": ("open", "["), "rbrack": ("close", "]")}
    | {"lfloor": ("open", "floor"), "rfloor": ("close", "floor"), "lceil": ("open", "ceil"), "rceil": ("close", "ceil")}
    | {"lvert": ("bar", "|"), "rvert": ("bar", "|"), "vert": ("bar", "|"), "|": ("bar", "|"), "Vert": ("bar", "|")}
    | {"lVert": ("bar", "|"), "rVert": ("bar", "|"), "mid": ("mid", "|"), "colon": ("colon", ":"), "&": ("sep", "and")}
    | {"euro": ("currency", "EUR"), "pounds": ("currency", "GBP"), "yen": ("currency", "JPY")}
    | {"dollar": ("currency", "$"), "money": ("currency", "money")}
)

IGNORED = frozenset(
    listed(
        "left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr displaystyle "
        "textstyle scriptstyle limits nolimits mathstrut strut left* boldmath bf rm it sf tt cal large Large "
        "small normalsize bfseries itshape centering nonumber notag par noindent hfill protect ( ) [ ] / "
        "relax allowbreak nobreak mathopen mathclose mathord mathrel mathbin mathpunct ensuremath"
    )
)
IGNORED_WITH_ARGUMENT = frozenset(
    listed("phantom hphantom vphantom hspace hspace* vspace vspace* label tag tag* mspace kern")
)
COLOURS = frozenset(listed("color textcolor colorbox"))
FONTS = frozenset(
    listed(
        "mathrm mathbf mathit mathsf mathtt mathcal mathscr mathfrak boldsymbol bm operatorname operatorname* "
        "pmb mathnormal mathop symbf symrm bold"
    )
)
TEXTS = frozenset(
    listed("text textbf textit textrm textsf texttt textnormal textsc textup emph mbox hbox mathring underbar")
)

IDEOGRAPH_SEPARATORS = {"或": "or", "和": "and", "且": "and", "与": "and", "或者": "or"}
SHORT_WORDS = frozenset(["is", "are", "the", "of", "for", "all", "we", "get"])
SEPARATOR_WORDS = frozenset(["and", "or"])
BARE_NAMES = (
    {name: ("func", name) for name in FUNCTIONS}
    | {plain: ("func", name) for plain, name in _ASCII_FUNCTIONS.items()}
    | {name: ("sym", name) for name in GREEK if len(name) > 2}
    | {name: ("const", "inf") for name in ("inf", "infinity", "Infinity", "infty", "oo")}
    | {
        "pi": ("const", "pi"),
        "Pi": ("const", "pi"),
        "sqrt": ("cmd", "sqrt"),
        "to": ("colon", ":"),
        "mod": ("op", "mod"),
        "in": ("rel", "in"),
    }
)


def letter(char: str) -> tuple[str, str]:
    """Token of one Latin letter: e and i are the constants, all others symbols."""
    return ("const", char) if char in ("e", "i") else ("sym", char)
