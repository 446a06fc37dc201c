"""What every recipe does: options, folders, checkpoints, processes, interruptions."""
