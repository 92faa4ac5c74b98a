"""Sequence mixers: attention, state space, linear attention, gated recurrence."""
