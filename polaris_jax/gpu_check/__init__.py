"""What a machine can do: kernels against their references, speeds, and the longest response that trains."""
