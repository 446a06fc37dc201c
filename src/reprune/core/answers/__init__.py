"""What models answer: how far two of them are apart, and refitting and teaching by it."""
