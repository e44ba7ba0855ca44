"""What a machine can do: kernels against their references, speeds, and the longest response that trains."""

from polaris_jax.gpu_check.runner import run

__all__ = ["run"]
