"""What can be done to a model: one file for each pass, and the machinery that runs them."""
