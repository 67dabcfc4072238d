"""Checkpoints as folders: filled under a temporary name, sealed by MANIFEST.json (sha256 of every file), then renamed.

A torn save never has the final name, and a flipped bit is found when the manifest is checked before a resume.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from lib.config.errors import RunError
from lib.run.files import read_json, sha256, sync, write_json

MANIFEST = "MANIFEST.json"
_NAME = re.compile(r"step-(\d+)(?:\.(\d+))?$")


@contextlib.contextmanager
def new(folder: Path, step: int) -> Iterator[Path]:
    """An empty folder to fill; on leaving without an error it becomes the checkpoint of `step` in `folder`.

    Raises RunError with the cause when it cannot be written; older checkpoints stay as they are.
    """
    partial = folder / f".step-{step:08d}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        _seal(partial)
        os.rename(partial, _free_name(folder, step))
        sync(folder)
    except OSError as error:
        raise RunError(
            f"cannot write a checkpoint into {folder}: {error.strerror or error}; older checkpoints are intact"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _seal(folder: Path) -> None:
    files = sorted(p for p in folder.iterdir() if p.is_file())
    for path in files:
        sync(path)
    write_json(folder / MANIFEST, {"sha256": {p.name: sha256(p) for p in files}})


def _free_name(folder: Path, step: int) -> Path:
    """step-00000012, or step-00000012.2 where that exists (the same weights, evaluated since)."""
    name, turn = f"step-{step:08d}", 1
    while (folder / (name if turn == 1 else f"{name}.{turn}")).exists():
        turn += 1
    return folder / (name if turn == 1 else f"{name}.{turn}")


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, in words; empty when every file has its sha256."""
    manifest = read_json(checkpoint / MANIFEST)
    listed = manifest.get("sha256") if manifest else None
    if not isinstance(listed, dict) or not listed:
        return f"{MANIFEST} is missing or unreadable"
    for name, digest in listed.items():
        path = checkpoint / str(name)
        if os.sep in str(name) or not path.is_file():
            return f"{name} is missing"
        if sha256(path) != digest:
            return f"{name} is damaged (sha256)"
    return ""


def listed(folder: Path) -> list[Path]:
    """All checkpoints in `folder`, the newest first."""
    if not folder.is_dir():
        return []
    found = [(match, p) for p in folder.iterdir() if (match := _NAME.match(p.name)) and p.is_dir()]
    return [p for _, p in sorted(found, key=lambda pair: (int(pair[0][1]), int(pair[0][2] or 1)), reverse=True)]


def newest_good(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are all intact, and what is wrong with the newer ones."""
    complaints: list[str] = []
    for checkpoint in listed(folder):
        wrong = damage(checkpoint)
        if not wrong:
            return checkpoint, complaints
        complaints.append(f"checkpoint {checkpoint.name} is not used: {wrong}")
    return None, complaints


def keep(folder: Path, count: int) -> None:
    """Remove all but the newest `count` checkpoints, and what killed processes left half written."""
    for checkpoint in listed(folder)[count:]:
        gone = checkpoint.with_name(f".{checkpoint.name}.gone")
        os.rename(checkpoint, gone)  # never a checkpoint with some of its files
        shutil.rmtree(gone, ignore_errors=True)
    remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove half-written and half-removed checkpoints; the caller holds the run's lock."""
    if folder.is_dir():
        for path in folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)
