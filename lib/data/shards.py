"""Token shards on disk: a folder of tokens.bin, token_bytes.bin, perhaps tokenizer.json, and manifest.json.

A folder is written under a hidden name, flushed, and renamed into place, so it is there whole or not at all; it is
never written again. Its name ends in a hash of everything that decides the tokens: other settings or a changed text
make another folder. What is opened is checked against the manifest.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lib.config.errors import DataError
from lib.data.files import HASHED_BYTES
from lib.run.files import sha256, sync

FORMAT = 1
TOKENS, TOKEN_BYTES, TOKENIZER, MANIFEST = "tokens.bin", "token_bytes.bin", "tokenizer.json", "manifest.json"
_LENGTHS = "<i4"


@dataclass(frozen=True)
class Dataset:
    """Two memory-mapped splits, uint16 where the vocabulary fits, else uint32, and what is known of them.

    token_bytes: int64 [vocab_size], UTF-8 bytes of each token, 0 for the separator. fingerprint: hex sha256 of the
    tokens, their split, the corpus and the tokenizer. bytes: UTF-8 bytes of the whole corpus, separators not counted.
    """

    name: str
    train: npt.NDArray[Any]
    val: npt.NDArray[Any]
    vocab_size: int
    separator: int
    token_bytes: npt.NDArray[np.int64]
    fingerprint: str
    bytes: int
    folder: Path


def dtype_of(vocab_size: int) -> str:
    """The file's type: little-endian, as small as the vocabulary allows."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


def key_of(settings: Mapping[str, Any]) -> str:
    """The hash that names a folder: of all that decides the tokens."""
    return hashlib.sha256(json.dumps([FORMAT, settings], sort_keys=True).encode()).hexdigest()


@contextmanager
def locked(folder: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Only one process at a time prepares `folder`; the others wait. A dead owner's lock is free.

    Where the file system has no locks, all prepare and the first to finish wins: a wasted effort, no clash.
    """
    path = folder.with_name(f".{folder.name}.lock")
    with _writing(folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                has_locks = _lock(descriptor, lambda: report(f"waiting for another process that writes {folder}"))
                if not has_locks or _is_still(path, descriptor):
                    break
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # its owner removed the file; whoever comes next makes a new one
    try:
        if has_locks:
            remove_leftovers(folder)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(descriptor: int, wait: Callable[[], None]) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        wait()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def remove_leftovers(folder: Path) -> None:
    """What a killed preparation of `folder` left behind; only its lock's holder may ask."""
    for part in folder.parent.glob(f".{folder.name}.*.part"):
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder to write into; at the end of the block it becomes `folder`, or nothing if the block failed.

    Raises DataError when the disk refuses.
    """
    part = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with _writing(folder):
            part.mkdir()
            yield part
            _flush(part)
            try:
                os.rename(part, folder)
            except OSError:
                if not folder.is_dir():
                    raise
            else:
                sync(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        raise DataError(
            f"{where}: cannot write token shards ({error.strerror or error}); make room, or name another folder with "
            "GPT2_DATA_DIR"
        ) from None


def _flush(folder: Path) -> None:
    for path in folder.iterdir():
        sync(path)
    sync(folder)


def write_manifest(part: Path, facts: Mapping[str, Any]) -> None:
    """Record `facts` and every file of `part` with its size, time and sha256 (taken from `facts` for tokens.bin)."""
    listed = {}
    for path in sorted(part.iterdir()):
        stat = path.stat()
        digest = facts["tokens_sha256"] if path.name == TOKENS else sha256(path)
        listed[path.name] = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": digest}
    manifest = {"format": FORMAT, **facts, "fingerprint": fingerprint_of(facts), "files": listed}
    (part / MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def fingerprint_of(facts: Mapping[str, Any]) -> str:
    """What identifies the tokens that a run sees."""
    names = ("tokens_sha256", "train_tokens", "val_tokens", "vocab_size", "corpus_sha256", "tokenizer_sha256")
    return hashlib.sha256(json.dumps({name: facts[name] for name in names}, sort_keys=True).encode()).hexdigest()


def write_token_bytes(part: Path, token_bytes: npt.NDArray[Any]) -> None:
    """The lengths of all tokens, so that opening needs no tokenizer."""
    token_bytes.astype(_LENGTHS).tofile(part / TOKEN_BYTES)


def open_folder(folder: Path, settings: Mapping[str, Any]) -> Dataset:
    """The shards in `folder`. Raises DataError when a file is not what the manifest says, or it has other settings."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT or manifest["settings"] != json.loads(json.dumps(settings)):
            raise _altered(folder / MANIFEST, "it stands for other settings than the folder's name")
        if manifest["fingerprint"] != fingerprint_of(manifest):
            raise _altered(folder / MANIFEST, "its fingerprint does not match its entries")
        files = manifest["files"]
        for name in (TOKENS, TOKEN_BYTES, *([TOKENIZER] if TOKENIZER in files else [])):
            _check(folder / name, files[name])
        if files[TOKENS]["sha256"] != manifest["tokens_sha256"]:
            raise _altered(folder / MANIFEST, "it gives two hashes for the tokens")
        train, val, vocab_size = (int(manifest[key]) for key in ("train_tokens", "val_tokens", "vocab_size"))
        tokens = np.memmap(folder / TOKENS, dtype=dtype_of(vocab_size), mode="r", shape=(train + val,))
        return Dataset(
            name=str(manifest["name"]),
            train=tokens[:train],
            val=tokens[train:],
            vocab_size=vocab_size,
            separator=int(manifest["separator"]),
            token_bytes=np.fromfile(folder / TOKEN_BYTES, dtype=_LENGTHS, count=vocab_size).astype(np.int64),
            fingerprint=str(manifest["fingerprint"]),
            bytes=int(manifest["bytes"]),
            folder=folder,
        )
    except FileNotFoundError as error:
        raise _altered(Path(error.filename), "it is missing") from None
    except OSError as error:
        raise DataError(f"{error.filename or folder}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise _altered(folder / MANIFEST, "it is not a manifest of this format") from None


def _check(path: Path, listed: Mapping[str, Any]) -> None:
    """Size always; content for all but large files that still carry the time they were written at."""
    stat = path.stat()
    if stat.st_size != listed["bytes"]:
        raise _altered(path, f"{stat.st_size:,} bytes instead of {listed['bytes']:,}")
    if stat.st_size > HASHED_BYTES and stat.st_mtime_ns == listed["mtime_ns"]:
        return
    found = sha256(path)
    if found != listed["sha256"]:
        raise _altered(path, f"sha256 {found[:12]} instead of {listed['sha256'][:12]}")


def _altered(path: Path, how: str) -> DataError:
    return DataError(f"{path}: altered since it was written: {how}; remove {path.parent} and run again to rewrite it")


def remove(folder: Path) -> bool:
    """Remove the shards in `folder`, and the folder when nothing else is in it; whether there were any."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        ours = manifest["format"] == FORMAT and {TOKENS, TOKEN_BYTES} <= set(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if ours:
        for name in (MANIFEST, TOKENS, TOKEN_BYTES, TOKENIZER):  # the manifest first: what is left is no data set
            (folder / name).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()
    return bool(ours)
