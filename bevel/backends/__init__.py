"""Where models go."""
