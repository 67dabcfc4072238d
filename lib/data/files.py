"""Local files as documents: text (.gz too) with `<|endoftext|>` lines, parquet and JSON-lines with a column `text`.

A corpus travels as pieces (text, ends): `ends` says that a document ends with this piece. A piece may be cut anywhere,
so that a file of any size passes through bounded memory; a document without text is nobody's concern.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lib.config.errors import DataError

Piece = tuple[str, bool]

SEPARATOR = "<|endoftext|>"
HASHED_BYTES = 256_000_000  # sources and shards up to this size are recognised by content, larger ones by size and time
_PIECE = 1 << 16  # bytes; larger blocks of varying size fragment the heap of a long preparation
_SNIFF = 8192  # bytes looked at to tell binary files
_SEPARATOR_LINE = re.compile(rb"^<\|endoftext\|>\r?(?:\n|\Z)", re.MULTILINE)
_RECORDS = (".parquet", ".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
_TEXTS = (".txt", ".txt.gz", ".text")
_SPLITS = ("validation", "valid", "test")  # published after train, whatever the alphabet says


def read(path: Path) -> Iterator[Piece]:
    """The pieces of one file, by its suffix. Raises DataError naming the file and the place."""
    if path.name.endswith(".parquet"):
        return _read_parquet(path)
    return _read_json_lines(path) if path.name.endswith(_RECORDS) else read_text(path)


def read_text(path: Path) -> Iterator[Piece]:
    """A UTF-8 text file; each line `<|endoftext|>` ends a document and belongs to none."""
    decoder = _Decoder(path)
    with reading(path), _open(path) as file:
        for lines, begins_line in _whole_lines(file):
            start = 0
            for match in _SEPARATOR_LINE.finditer(lines):
                if match.start() > 0 or begins_line:
                    yield decoder.text(lines[start : match.start()], final=True), True
                    decoder.offset += len(match[0])
                    start = match.end()
            yield decoder.text(lines[start:], final=False), False
        yield decoder.text(b"", final=True), True


def _whole_lines(file: IO[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Blocks that end with a line, and whether they begin one; a line longer than a block comes in several."""
    tail, begins_line = b"", True
    while block := file.read(_PIECE):
        data = tail + block
        end = data.rfind(b"\n") + 1
        if end == 0 and len(data) > 2 * len(SEPARATOR):  # too long a line to be a separator
            end = len(data)
        if end:
            yield data[:end], begins_line
            begins_line = data[end - 1 : end] == b"\n"
        tail = data[end:]
    if tail:
        yield tail, begins_line


class _Decoder:
    """Strict UTF-8 in pieces that may be cut inside a character."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset, self._rest = path, 0, b""

    def text(self, data: bytes, final: bool) -> str:
        data = self._rest + data
        try:
            text, used = codecs.utf_8_decode(data, "strict", final)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.path}: not UTF-8: byte {self.offset + error.start:,} is 0x{data[error.start]:02x}; "
                "convert the file (iconv -t UTF-8) or leave it out"
            ) from None
        self.offset += used
        self._rest = data[used:]
        return text


def _read_json_lines(path: Path) -> Iterator[Piece]:
    with reading(path), _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError):
                text = None
            if not isinstance(text, str):
                raise DataError(f'{path}:{number}: not a JSON object with a string "text"; one such object per line')
            yield text, True


def _read_parquet(path: Path) -> Iterator[Piece]:
    import pyarrow
    import pyarrow.parquet

    with reading(path):
        try:
            file = pyarrow.parquet.ParquetFile(path)
            names = file.schema_arrow.names
            if "text" not in names:
                raise DataError(f"{path}: no column `text`; it has {', '.join(names) or 'none'}")
            for batch in file.iter_batches(batch_size=256, columns=["text"]):
                for text in batch.column(0).to_pylist():
                    if text is not None:
                        yield str(text), True
        except pyarrow.ArrowException as error:
            raise DataError(f"{path}: not readable as parquet ({_first_line(error)}); fetch the file again") from None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what reading `path` raises into a DataError that names it."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file ({_first_line(error)}); fetch it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or _first_line(error)})") from None


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb")  # type: ignore[return-value]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def walk(folder: Path, without: Collection[str] = ()) -> list[Path]:
    """Every regular file under `folder`, ordered by path; no hidden files and folders, none in folders `without`."""
    found: list[Path] = []
    with reading(folder):
        for top, folders, names in os.walk(folder, onerror=_raise):
            folders[:] = [name for name in folders if not name.startswith(".") and name not in without]
            found += [Path(top, name) for name in names if not name.startswith(".")]
    return sorted((path for path in found if path.is_file()), key=lambda p: p.relative_to(folder).as_posix())


def _raise(error: OSError) -> None:
    raise error


def is_binary(path: Path) -> bool:
    """Whether a NUL byte is near the beginning: then this is no text at all."""
    with reading(path), _open(path) as file:
        return b"\0" in file.read(_SNIFF)


def records_in(folder: Path) -> list[Path]:
    """The data files of a downloaded corpus: parquet if there is any, else JSON lines, else text; train files first."""
    every = walk(folder)
    for suffixes in ((".parquet",), _RECORDS, _TEXTS):
        found = [path for path in every if path.name.endswith(suffixes)]
        if found:
            return sorted(found, key=lambda path: path.name.startswith(_SPLITS))
    raise DataError(f"{folder}: no parquet, JSON-lines (.jsonl) or text (.txt) file in it; {len(every):,} others")


def state_of(files: Sequence[Path], root: Path) -> dict[str, Any]:
    """What tells whether `files` are still the same: by content, or above 256 MB by names, sizes and times."""
    sizes = []
    for path in files:
        with reading(path):
            sizes.append(path.stat())
    total = sum(stat.st_size for stat in sizes)
    digest = hashlib.sha256()
    for path, stat in zip(files, sizes, strict=True):
        name = path.relative_to(root).as_posix() if path != root else ""
        digest.update(f"{name}\0{stat.st_size}\0".encode("utf-8", "surrogateescape"))
        if total > HASHED_BYTES:
            digest.update(f"{stat.st_mtime_ns}\0".encode())
        else:
            with reading(path), open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return {"files": len(files), "bytes": total, "sha256": digest.hexdigest()}
