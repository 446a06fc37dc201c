"""What makes up for removed units in the weights that read them."""
