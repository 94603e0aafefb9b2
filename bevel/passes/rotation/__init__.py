"""Which rotation a dimension gets."""
