"""The YouTube-8M recipe: video tagging from frame features."""
