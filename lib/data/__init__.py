"""From text to batches: corpora, tokenizers, token shards on disk, and the windows that a run reads."""
