"""Conversations, and prompts with completions: rows, and their tokens."""
