"""Adapting a model: protected updates, adapters, prompts, steering, aggregation."""
