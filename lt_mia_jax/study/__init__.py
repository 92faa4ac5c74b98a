"""What experiments share: combinations, resumable stages, launchers."""
