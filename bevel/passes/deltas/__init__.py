"""What fine-tuning added to a base, thinned out."""
