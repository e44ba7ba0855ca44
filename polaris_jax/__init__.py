"""polaris_jax: reinforcement learning of reasoning models in JAX, after the POLARIS recipe."""

from polaris_jax.host_memory import keep_freed_memory

keep_freed_memory()  # before JAX starts its threads
