"""Edits of activations at inference; weights stay as they are."""
