"""What the commands of `bevel.cli` do; imported when one is run."""
