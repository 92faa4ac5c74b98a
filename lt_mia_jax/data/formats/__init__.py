"""Formats of files of texts: what is read, and as what."""
