"""The built-in networks, which are plain `flax.linen` modules."""
