"""YouTube-8M: records, metrics, and feeding them to a training loop. Import the modules by name."""
