"""What layers answer, what consumers read, and how much that matters."""
