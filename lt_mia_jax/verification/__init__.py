"""Did the model forget? Evaluation, metrics, and the report card."""
