"""The page of unlearning runs."""
