"""Streams of tasks: replay, metrics of forgetting and transfer, compute."""
