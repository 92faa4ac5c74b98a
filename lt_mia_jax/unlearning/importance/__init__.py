"""Which weights and layers matter to which texts."""
