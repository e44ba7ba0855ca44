"""Units of measurement: which words are units, and when two units change the value."""

import re
from fractions import Fraction

from polaris_jax.mathematics.symbols import listed

_F = Fraction
_TABLE: dict[str, tuple[str, Fraction]] = {}


def _define(dimension: str, **scales: tuple[Fraction, str]) -> None:
    for scale, names in scales.values():
        for name in names.split():
            _TABLE[name] = (dimension, scale)


_define(
    "length",
    mm=(_F(1, 1000), "mm millimeter millimeters millimetre millimetres"),
    cm=(_F(1, 100), "cm cms centimeter centimeters centimetre centimetres"),
    dm=(_F(1, 10), "dm decimeter decimeters"),
    m=(_F(1), "m meter meters metre metres"),
    km=(_F(1000), "km kms kilometer kilometers kilometre kilometres"),
    inch=(_F(254, 10000), "in inch inches"),
    ft=(_F(3048, 10000), "ft foot feet"),
    yd=(_F(9144, 10000), "yd yard yards"),
    mi=(_F(1609344, 1000), "mi mile miles"),
)
_define(
    "time",
    s=(_F(1), "s sec secs second seconds"),
    min=(_F(60), "min mins minute minutes"),
    h=(_F(3600), "h hr hrs hour hours"),
    day=(_F(86400), "day days"),
    week=(_F(604800), "week weeks"),
)
_define("year", month=(_F(1, 12), "month months"), year=(_F(1), "year years yr yrs"))
_define(
    "mass",
    mg=(_F(1, 1000), "mg milligram milligrams"),
    g=(_F(1), "g gram grams"),
    kg=(_F(1000), "kg kgs kilogram kilograms"),
)
_define("volume", ml=(_F(1, 1000), "ml mL milliliter milliliters"), l=(_F(1), "L liter liters litre litres"))
_define("dollar", cent=(_F(1, 100), "cent cents"), dollar=(_F(1), "$ dollar dollars USD"))
_define("yuan", yuan=(_F(1), "yuan RMB"))
_define("euro", euro=(_F(1), "euro euros EUR"))
_define("sterling", sterling=(_F(1), "GBP"))
_define("yen", yen=(_F(1), "yen JPY"))
_define("arc", second=(_F(1, 3600), "primeprime"), minute=(_F(1, 60), "prime"), degree=(_F(1), "degree"))
_define("celsius", celsius=(_F(1), "degC"))
_define("fahrenheit", fahrenheit=(_F(1), "degF"))

_OTHER_WORDS = frozenset(
    listed(
        "unit units square cubic squared cubed sq cu mph kph kmh pound pounds lb lbs ounce ounces oz point points "
        "people persons person students student children boys girls men women ways way times digits coins "
        "cards books apples oranges balls marbles pieces items cubes squares triangles games hours votes "
        "tickets rupees pesos francs cups gallons gallon newtons newton joules joule watts watt volts volt "
        "ohms hertz kelvin pascal pascals amperes moles mole mol hz Hz kHz MHz GHz kJ kW kWh kPa Pa eV keV "
        "MeV GeV nm pm km/h kmph cal kcal acres acre hectares per solutions pairs integers values elements "
        "members sides edges faces vertices degrees degree percent yuan steps tosses rolls days inhabitants "
        "pct radian radians rad erg ergs AU pc kpc Mpc dollars each total"
    )
)
CURRENCIES = frozenset(["eur", "gbp", "jpy", "money"])
DEGREE_WORDS = frozenset(["degree", "degrees", "deg"])
PERCENT_WORDS = frozenset(["percent", "percentage", "pct", "per cent"])
MULTIPLIERS = {
    "dozen": 12,
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "hundreds": 10**2,
    "thousands": 10**3,
    "millions": 10**6,
    "billions": 10**9,
}
_CHANGING_WORDS = frozenset(
    listed(
        "not or and no none nor neither between if unless except mod modulo divides less more greater than "
        "least most plus minus times over power root under above below about approximately around roughly "
        "half quarter third false wrong incorrect isn't but only fewer another other also either maybe "
        "possibly unknown undefined bits"
    )
)
LETTERS = frozenset("msghLJNWVAKCFT")
_POWER_WORDS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}


def is_unit_word(word: str) -> bool:
    """Whether letters written without any markup are a unit rather than a product of symbols."""
    return len(word) > 1 and (word in _TABLE or word.lower() in _TABLE or word in _OTHER_WORDS)


def is_unit_letter(name: str) -> bool:
    """Whether a single letter set apart by explicit space may be a unit."""
    return name in LETTERS


def is_unit_text(text: str) -> bool:
    """Whether a formula is a compound unit such as m/s^2."""
    words = re.findall(r"[A-Za-z]+", re.sub(r"\\[a-z]*", "", text))
    marks = re.sub(r"[A-Za-z0-9]|\\[,;:! ]|\\cdot", "", text)
    return bool(words) and len(text) > 1 and set(marks) <= set("^{}/-~ *") and all(map(_is_unit, words))


def _is_unit(word: str) -> bool:
    return is_unit_word(word) or word in LETTERS


def changes_value(text: str) -> bool:
    """Whether words after a value say something else than its unit, such as `or 43` or `is wrong`."""
    words = re.findall(r"[^\W\d_]+(?:'[a-z]+)?", text.lower())
    return bool(re.search(r"\d{2}|[=<>]", text)) or len(words) > 8 or any(word in _CHANGING_WORDS for word in words)


def factor_between(gold: str, other: str) -> Fraction | None:
    """What a value in `other` is multiplied with to be in `gold`; 1 where a unit is unknown, None where they clash."""
    first, second = _dimensions(gold), _dimensions(other)
    if first is None or second is None:
        return Fraction(1)
    if first[0] != second[0]:
        return None
    return second[1] / first[1]


def _dimensions(unit: str) -> tuple[dict[str, int], Fraction] | None:
    """Powers of the base dimensions and the scale, or None where a word is not in the table."""
    powers: dict[str, int] = {}
    scale, sign, pending = Fraction(1), 1, 1
    for word, exponent in re.findall(r"([A-Za-z$]+|/)(?:\s*\^?\{?(-?\d)\}?)?", unit):
        if word in ("/", "per"):
            sign = -1
        elif word in _POWER_WORDS:
            pending = _POWER_WORDS[word]
        elif word == "squared" or word == "cubed":
            return None
        else:
            entry = _TABLE.get(word) or _TABLE.get(word.lower())
            if entry is None:
                return None
            power = sign * pending * int(exponent or 1)
            powers[entry[0]] = powers.get(entry[0], 0) + power
            scale *= entry[1] ** power
            pending = 1
    powers = {name: power for name, power in powers.items() if power}
    return (powers, scale) if powers else None
