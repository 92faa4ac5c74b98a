"""Importance of weights, layers and texts."""
