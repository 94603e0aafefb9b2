"""Mixtures of experts as they are found in graphs: one description, whatever form they have, and what is made of it."""
