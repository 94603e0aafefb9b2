"""Scales that move between layers so that the function stays and something after it gets better."""
