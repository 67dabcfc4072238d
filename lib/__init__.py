"""The harness: configuration, data, training, run directories, matrices, analysis. Knows nothing of GPT-2."""
