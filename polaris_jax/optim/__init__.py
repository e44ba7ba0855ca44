"""The optimizer: a chain of optax transformations chosen by name, and moments kept in fewer bits."""
