"""The learned attack: classifier, training, storage."""
