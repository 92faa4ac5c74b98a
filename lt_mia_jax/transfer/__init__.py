"""Models made of other models, and what happens to them on a stream of tasks."""
