"""PEFT's low-rank adapters: merged into a base as it is read, and written."""
