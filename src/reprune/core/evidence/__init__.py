"""What was seen of a model: statistics of responses, what consumers read, calibration batches."""
