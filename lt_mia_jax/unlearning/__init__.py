"""Forgetting: objectives, transformations of updates, and what runs them."""
