"""The language-model recipe: text, vocabulary, word model."""
