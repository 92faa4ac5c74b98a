"""Optax transformations that several rooms use, and the contract of all of them."""

from lt_mia_jax.training.transforms import anchor, mask

__all__ = ["anchor", "mask"]
