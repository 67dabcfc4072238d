"""prepare(): the dataset that a configuration names, tokenised once and from then on read from its shards.

The last val_fraction of the corpus is held out by position in its UTF-8 bytes, not in tokens: the same text is held out
under every tokenizer. A token that crosses the border belongs to training.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from lib.config.errors import DataError
from lib.data import shards
from lib.data.config import DataConfig, vocab_size_of
from lib.data.corpora import Corpus, corpus_of
from lib.data.files import Piece
from lib.data.progress import Progress
from lib.data.shards import Dataset
from lib.data.tokenise import Meter, groups, token_at, write_tokens
from lib.data.tokenizers import MIN_FREQUENCY, Bytes, GPT2Tokenizer, Tokenizer, train

__all__ = ["DataConfig", "Dataset", "prepare", "prepared", "vocab_size_of"]

TRAINING_BYTES = 100_000_000  # a vocabulary is trained on no more than this

Report = Callable[[str], None]


def prepare(config: DataConfig, base: Path, report: Report = print) -> Dataset:
    """The dataset of `config`, from its shards or else written now; relative paths start at `base`.

    Any number of processes may call this at once. Raises DataError, or ConfigError for a path that does not apply.
    """
    corpus, settings, folder = _place(config, base)
    if folder.exists():
        found = shards.open_folder(folder, settings)
        report(f"data: {folder.name}, {_counts(found)}")
        return found
    with shards.locked(folder, report):
        if not folder.exists():
            report(f"tokenising {corpus.name} ({corpus.source}) into {folder}")
            with shards.new_folder(folder) as part:
                _write(config, base, corpus, settings, part, report)
    found = shards.open_folder(folder, settings)
    report(f"data: {folder.name}, {_counts(found)} of {found.bytes / 1e6:,.1f} MB text")
    return found


def prepared(config: DataConfig, base: Path) -> Dataset | None:
    """The dataset of `config` if its shards are there, without writing anything. Raises what prepare() raises."""
    _, settings, folder = _place(config, base)
    return shards.open_folder(folder, settings) if folder.exists() else None


def _place(config: DataConfig, base: Path) -> tuple[Corpus, dict[str, Any], Path]:
    """The corpus, all that decides its tokens, and the folder they belong into."""
    corpus = corpus_of(config, base)
    settings: dict[str, Any] = {
        "corpus": corpus.name,
        "state": corpus.state(),
        "max_mb": config.max_mb,
        "val_fraction": config.val_fraction,
        # Where GPT-2's ranks come from does not matter: they are checked to be GPT-2's.
        "tokenizer": config.tokenizer,
    }
    if config.tokenizer == "trained":
        settings["training"] = [config.bpe_vocab, TRAINING_BYTES, MIN_FREQUENCY]
    name = f"{_name(config)}-{shards.key_of(settings)[:12]}"
    return corpus, settings, base / Path(config.data_dir).expanduser() / name


def _name(config: DataConfig) -> str:
    size = config.bpe_vocab if config.tokenizer == "trained" else ""
    return f"{config.dataset}-{config.tokenizer}{size}"


def _counts(found: Dataset) -> str:
    return f"{len(found.train):,} training and {len(found.val):,} validation tokens"


def _write(
    config: DataConfig, base: Path, corpus: Corpus, settings: dict[str, Any], part: Path, report: Report
) -> None:
    """Tokenise `corpus` into the folder `part`."""
    limit = config.max_mb * 1_000_000 or None
    tokenizer = _tokenizer(config, base, corpus, limit, report)
    dtype = shards.dtype_of(tokenizer.vocab_size)
    lengths = tokenizer.token_bytes()
    meter = Meter(limit)
    total = min((size for size in (corpus.size, limit) if size is not None), default=None)
    with open(part / shards.TOKENS, "wb") as file, Progress(f"tokenising {corpus.name}", total) as progress:
        stream = write_tokens(meter.read(corpus.pieces()), tokenizer, dtype, _workers(config), file, progress)
    if stream.tokens == 0:
        raise DataError(f"{corpus.source}: no text in it; give other text with GPT2_DATA_PATH or GPT2_DATASET")
    if corpus.state() != settings["state"]:
        raise DataError(f"{corpus.source}: changed while it was read; run again when it is complete")
    tokens = np.memmap(part / shards.TOKENS, dtype=dtype, mode="r")
    held_out_from = int(meter.bytes * (1 - config.val_fraction))
    train_tokens = token_at(held_out_from, stream.marks, tokens, lengths)
    shards.write_token_bytes(part, lengths)
    if tokenizer.json is not None:
        (part / shards.TOKENIZER).write_text(tokenizer.json, encoding="utf-8")
    shards.write_manifest(
        part,
        {
            "name": _name(config),
            "settings": settings,
            "source": corpus.source,
            "bytes": meter.bytes,
            "documents": meter.documents,
            "tokens": stream.tokens,
            "train_tokens": train_tokens,
            "val_tokens": stream.tokens - train_tokens,
            "vocab_size": tokenizer.vocab_size,
            "separator": tokenizer.separator,
            "tokens_sha256": stream.sha256,
            "corpus_sha256": meter.sha256,
            "tokenizer_sha256": tokenizer.fingerprint,
            "written_by": _versions(config),
        },
    )


def _tokenizer(config: DataConfig, base: Path, corpus: Corpus, limit: int | None, report: Report) -> Tokenizer:
    if config.tokenizer == "bytes":
        return Bytes()
    if config.tokenizer == "gpt2":
        return GPT2Tokenizer(base / Path(config.bpe_ranks).expanduser() if config.bpe_ranks else None)
    assert config.bpe_vocab is not None
    report(f"training a vocabulary of {config.bpe_vocab:,} on {corpus.name}")
    trained = train(_training_texts(corpus, limit, config.val_fraction), config.bpe_vocab)
    if trained.used < trained.vocab_size:
        report(f"note: the text yields {trained.used:,} tokens; the other ids of {trained.vocab_size:,} never occur")
    return trained


def _training_texts(corpus: Corpus, limit: int | None, val_fraction: float) -> Iterator[str]:
    """The beginning of the corpus, at most TRAINING_BYTES, without the share that may be held out."""
    meter = Meter(min(limit or TRAINING_BYTES, TRAINING_BYTES))
    beginning: list[Piece] = list(meter.read(corpus.pieces()))
    kept = Meter(int(meter.bytes * (1 - val_fraction)))
    for group in groups(kept.read(beginning)):
        for _, text in group:
            yield text


def _workers(config: DataConfig) -> int:
    if config.workers:
        return config.workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _versions(config: DataConfig) -> dict[str, str]:
    library = {"gpt2": "tiktoken", "trained": "tokenizers"}.get(config.tokenizer)
    found = {"python": platform.python_version(), "numpy": version("numpy")}
    return {**found, library: version(library)} if library else found
