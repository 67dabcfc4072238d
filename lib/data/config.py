"""What the data room needs to know, and what can be said of a tokenizer before any text is read."""

from __future__ import annotations

from dataclasses import dataclass

from lib.config.fields import sym

GPT2_VOCAB, BYTES_VOCAB = 50257, 257  # both with the document separator as their last token


@dataclass(frozen=True)
class DataConfig:
    """One corpus, one tokenizer, one split. Settings that do not apply are None; relative paths start at .config."""

    dataset: str = sym("GPT2_DATASET")
    path: str = sym("GPT2_DATA_PATH")
    max_mb: int = sym("GPT2_DATA_MAX_MB")
    synthetic_mb: int | None = sym("GPT2_SYNTHETIC_MB")
    synthetic_seed: int | None = sym("GPT2_SYNTHETIC_SEED")
    val_fraction: float = sym("GPT2_VAL_FRACTION")
    tokenizer: str = sym("GPT2_TOKENIZER")
    bpe_ranks: str | None = sym("GPT2_BPE_RANKS")
    bpe_vocab: int | None = sym("GPT2_BPE_VOCAB")
    data_dir: str = sym("GPT2_DATA_DIR")
    workers: int = sym("GPT2_DATA_WORKERS")


def vocab_size_of(config: DataConfig) -> int:
    """The tokenizer's own vocabulary, unpadded and with the separator; known without preparing anything."""
    if config.tokenizer == "gpt2":
        return GPT2_VOCAB
    if config.tokenizer == "bytes":
        return BYTES_VOCAB
    assert config.bpe_vocab is not None
    return config.bpe_vocab
