"""Reading and comparing mathematical answers; `judge(box, answers)` is the one way in."""

from polaris_jax.mathematics.equivalence import Comparison, importing_sympy, judge

__all__ = ["Comparison", "importing_sympy", "judge"]
