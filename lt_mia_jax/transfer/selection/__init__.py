"""Which model, context or depth to train from: scores and search."""
