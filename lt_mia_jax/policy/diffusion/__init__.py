"""Masked-diffusion language models: decoders, trajectories, and policies on them."""
