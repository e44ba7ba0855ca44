"""Reading and comparing mathematical answers; `judge(box, answers)` is the one way in."""

from polaris_jax.mathematics.equivalence import Comparison, judge

__all__ = ["Comparison", "judge"]
