"""A plugin for Bevel: one pass, one importance and one operator rule."""
