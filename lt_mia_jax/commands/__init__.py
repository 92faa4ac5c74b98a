"""One file a command: a frozen configuration that documents itself, and its run."""
