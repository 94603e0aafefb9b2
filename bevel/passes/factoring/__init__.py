"""Two small layers in the place of a large one: the arithmetic, the ranks, and the nodes."""
