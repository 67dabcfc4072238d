"""Where a run came from: settings with their sources, code, versions, machine. Recorded, never part of a hash."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from lib.config.resolve import RunSpec

PACKAGES = (
    "torch",
    "numpy",
    "transformers",
    "tiktoken",
    "tokenizers",
    "datasets",
    "safetensors",
    "kconfiglib",
    "triton",
)


def config(spec: RunSpec) -> dict[str, Any]:
    """What config.json holds of a specification: every value with its source, the budget, the hashes."""
    return {
        "name": spec.name,
        "step": spec.step,
        "description": spec.description,
        "optimizer": spec.optimizer,
        "seed": spec.seed,
        "budget": {"kind": spec.budget.kind, "amount": spec.budget.amount},
        "spec_hash": spec.spec_hash,
        "fairness_hash": spec.fairness_hash,
        "values": {n: {"value": v, "source": spec.sources.get(n, "derived")} for n, v in spec.values.items()},
    }


def attempt(root: Path, **more: Any) -> dict[str, Any]:
    """What config.json holds of one process that trains: time, command, code, versions, machine, and `more`."""
    return {
        "time": time.strftime("%FT%T%z"),
        "command": shlex.join([sys.executable, *sys.argv]),
        **commit(root),
        "python": platform.python_version(),
        "versions": versions(),
        "host": platform.node(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        **more,
    }


def versions() -> dict[str, str]:
    """Versions of the packages that a result may depend on; absent ones are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(root: Path) -> dict[str, Any]:
    """The checkout's commit and whether files differ from it; nulls outside a repository."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no") if head else None
    return {"commit": head, "changed_files": None if changed is None else len(changed.splitlines())}
