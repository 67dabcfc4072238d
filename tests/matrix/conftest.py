"""Cells whose commands are tiny programs: the runner knows nothing but directories and exit codes."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from lib.matrix.plan import Cell


@pytest.fixture
def cell(tmp_path: Path):
    """cell(name, program): a run whose command is `python -c program`, with RUN set to its directory."""

    def make(name: str, program: str, spec_hash: str = "a" * 64) -> Cell:
        spec = SimpleNamespace(name=name, spec_hash=spec_hash, description=f"the run {name}")
        prelude = (
            "import json, os, pathlib, signal, sys, time\n"
            f"run = pathlib.Path({str(tmp_path / name)!r}); run.mkdir(exist_ok=True)\n"
            f"hash = {spec_hash!r}\n"
            "(run / 'config.json').write_text(json.dumps({'spec_hash': hash}))\n"
            "done = {'status': 'done', 'spec_hash': hash, 'val_loss': 1.0}\n"
            "def finish(): (run / 'metrics.json').write_text(json.dumps(done))\n"
        )
        return Cell(spec, tmp_path / name, ("-c", prelude + program))  # type: ignore[arg-type]

    return make
