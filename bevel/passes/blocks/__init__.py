"""How much residual blocks matter, and what can stand in for them."""
