"""Which answers ask for sympy, told without importing it."""

import re

from polaris_jax.mathematics import nodes as n
from polaris_jax.mathematics import relations

_HINT = re.compile(
    r"\\(?:int|lim|sum|prod|det|partial|Bbb|mid)(?![A-Za-z])|\\[dt]?frac\s*\{?\s*(?:d|\\mathrm)|'|matrix|array|\\\{.*[|:]"
)
_CALCULUS = (n.Fold, n.Integral, n.Limit, n.Derivative, n.Builder)


def may_ask_for_sympy(gold: str, box: str) -> bool:
    """A quick look at the texts, right wherever it says False; only a gold's equation may have to be solved."""
    return "=" in gold or bool(_HINT.search(gold) or _HINT.search(box))


def asks_for_sympy(node: n.Node) -> bool:
    """Whether there is something in the tree that only sympy can work out."""
    return any(isinstance(part, _CALCULUS) or _is_matrix_arithmetic(part) for part in n.walk(node))


def _is_matrix_arithmetic(node: n.Node) -> bool:
    return isinstance(node, n.Call) and any(isinstance(arg, n.Matrix) for arg in node.args)


def unknown(gold: n.Node) -> str | None:
    """The one unknown of an equation that is not solved for it, such as x^2 = 4; None for any other answer."""
    if not relations.is_equation(gold) or len(gold.sides) != 2 or relations.assigned(gold):
        return None
    names = n.free_symbols(gold)
    (name,) = names if len(names) == 1 else ("()",)
    return None if name.endswith("()") else name
