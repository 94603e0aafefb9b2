"""A graph compiler for trained networks."""
