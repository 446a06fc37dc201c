"""Running the user's model on a private copy: wrappers, batches, modes."""
