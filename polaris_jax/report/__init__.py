"""A run, or several compared, as one HTML file that opens from disk: `report.write([workdir])`."""

from polaris_jax.report.page import NAME, write

__all__ = ["NAME", "write"]
