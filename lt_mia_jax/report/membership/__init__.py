"""The page of audits and evaluations."""
