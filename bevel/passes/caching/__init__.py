"""Caches of keys and values as codes: their scales, and what is written for them."""
