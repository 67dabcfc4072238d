"""The run directory: its files, its lock, its checkpoints, and what state it is in. No torch."""
