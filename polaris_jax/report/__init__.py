"""A run, or several compared, as one HTML file that opens from disk: `report.write([workdir])`."""

from polaris_jax.report.page import write

__all__ = ["write"]
