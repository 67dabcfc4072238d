"""Where the text comes from: each corpus of GPT2_DATASET as a name, what decides its text, and its pieces."""

from __future__ import annotations

import os
import platform
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from lib.config.errors import ConfigError, DataError
from lib.data import files, hub, synthetic
from lib.data.config import DataConfig
from lib.data.files import Piece

_NO_SOURCES = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_INSTALLED = ("_sysconfigdata", "sitecustomize")  # written by the installation: they differ between machines


@dataclass(frozen=True)
class Corpus:
    """`state` decides the text (a changed state means new shards); `size` is its bytes where known beforehand."""

    name: str
    source: str  # in words, for people
    state: Callable[[], dict[str, Any]]
    pieces: Callable[[], Iterator[Piece]]
    size: int | None = None


def corpus_of(config: DataConfig, base: Path) -> Corpus:
    """The corpus that `config` names. Raises ConfigError or DataError when its path is missing or of no use."""
    name = config.dataset
    if name in ("pystdlib", "synthetic") and config.path:
        raise ConfigError(
            f"GPT2_DATA_PATH {config.path} has no use with GPT2_DATASET={name}; for that text set textfile or textdir"
        )
    if name == "pystdlib":
        return _pystdlib()
    if name == "synthetic":
        return _synthetic(config)
    if config.path:
        path = base / Path(config.path).expanduser()
        if not os.path.exists(path):  # where Path.exists raises, this says no
            raise DataError(
                f"{path}: no such file or folder; a relative GPT2_DATA_PATH starts at the folder of .config"
            )
        reader = {"textfile": _textfile, "textdir": _textdir}.get(name)
        return reader(path) if reader else _local_copy(name, path)
    if name in ("textfile", "textdir"):
        raise ConfigError(f"GPT2_DATASET={name} needs GPT2_DATA_PATH, the path of the text")
    return _published(name)


def _of_files(name: str, source: str, root: Path, found: list[Path], one: Callable[[Path], Iterator[Piece]]) -> Corpus:
    plain = not any(path.name.endswith((".gz", ".parquet")) for path in found)
    return Corpus(
        name,
        source,
        lambda: files.state_of(found, root),
        lambda: chain.from_iterable(map(one, found)),
        sum(path.stat().st_size for path in found) if plain else None,
    )


def _pystdlib() -> Corpus:
    """The *.py files of the running Python, without tests; no files that installation writes."""
    root = Path(sysconfig.get_path("stdlib"))
    found = [
        path
        for path in files.walk(root, without=_NO_SOURCES)
        if path.suffix == ".py" and not path.name.startswith(_INSTALLED)
    ]
    if not found:
        raise DataError(f"{root}: no *.py files of the standard library; set GPT2_DATASET=textfile and GPT2_DATA_PATH")
    return _of_files("pystdlib", f"Python {platform.python_version()}, {root}", root, found, _python_source)


def _python_source(path: Path) -> Iterator[Piece]:
    try:
        with files.reading(path):
            yield path.read_bytes().decode(), True
    except UnicodeDecodeError:  # declares an encoding of its own; the corpus must work everywhere
        return


def _textfile(path: Path) -> Corpus:
    if path.is_dir():
        raise DataError(f"{path}: a folder; GPT2_DATASET=textfile reads one file, textdir a folder")
    return _of_files("textfile", str(path), path, [path], files.read_text)


def _textdir(path: Path) -> Corpus:
    if not path.is_dir():
        raise DataError(f"{path}: a file; GPT2_DATASET=textdir reads a folder, textfile one file")
    found = [file for file in files.walk(path) if not files.is_binary(file)]
    if not found:
        raise DataError(f"{path}: no text files under it (hidden and binary files are left out)")
    return _of_files("textdir", str(path), path, found, files.read_text)


def _local_copy(name: str, path: Path) -> Corpus:
    found = files.records_in(path) if path.is_dir() else [path]
    corpus = _of_files(name, str(path), path, found, files.read)
    return _as_published(corpus)


def _published(name: str) -> Corpus:
    home = hub.HOMES[name]
    return _as_published(Corpus(name, f"{home.repository} on the hub", home.state, lambda: hub.stream(name)))


def _as_published(corpus: Corpus) -> Corpus:
    """Tiny Shakespeare is one text, however many rows its copy has."""
    if corpus.name != "shakespeare":
        return corpus
    return Corpus(corpus.name, corpus.source, corpus.state, lambda: _joined(corpus.pieces()), corpus.size)


def _joined(pieces: Iterator[Piece]) -> Iterator[Piece]:
    for text, _ in pieces:
        yield text, False
    yield "", True


def _synthetic(config: DataConfig) -> Corpus:
    assert config.synthetic_seed is not None
    assert config.synthetic_mb is not None
    seed, size = config.synthetic_seed, config.synthetic_mb * 1_000_000
    return Corpus(
        "synthetic",
        f"seed {seed}",
        lambda: {"grammar": synthetic.VERSION, "seed": seed, "bytes": size},
        lambda: synthetic.pieces(seed, size),
        size,
    )
