"""Networks: plain `flax.linen` modules."""
