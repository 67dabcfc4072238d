"""A matrix of runs: what it consists of, in which order it runs, where it stands. No torch, no model."""
