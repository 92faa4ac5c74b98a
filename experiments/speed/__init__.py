"""Speed and memory, beside PyTorch and the limits."""
