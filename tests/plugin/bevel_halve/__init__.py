"""A plugin for Bevel: one pass and one operator rule."""
