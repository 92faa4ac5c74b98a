"""Every unlearning method side by side."""
