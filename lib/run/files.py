"""Writing files so that a reader finds the old content or the new, never a part: temporary name, fsync, rename, fsync.

JSON is strict: no NaN and no infinity; a row that has such a value holds null there and names it in `non_finite`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.config.errors import RunError


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8), atomically and durably. Raises RunError with the cause."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace `path` by `content` as JSON, atomically and durably. Raises RunError with the cause."""
    write_text(path, json.dumps(finite(content), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`, or None when the file is absent or is no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """`row` with null for every top-level number that is not finite, and their names under `non_finite`."""
    bad = [key for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
    clean = {key: None if key in bad else value for key, value in row.items()}
    return {**clean, "non_finite": bad} if bad else clean


def sync(path: Path) -> None:
    """Make the content of a file durable, or the renames inside a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """The hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
