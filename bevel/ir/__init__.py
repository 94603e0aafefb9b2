"""What a model is: dimensions, couplings, rules for each operator, and the edits on them."""
