"""Memorisation auditing for language models: detect, forget, verify."""

from lt_mia_jax.version import __version__ as __version__
