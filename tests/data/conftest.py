"""A configuration of the data room that differs from a small default only where a test says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lib.data.config import DataConfig


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., DataConfig]:
    def make(**changes: Any) -> DataConfig:
        values: dict[str, Any] = {
            "dataset": "textfile",
            "path": "",
            "max_mb": 0,
            "synthetic_mb": None,
            "synthetic_seed": None,
            "val_fraction": 0.1,
            "tokenizer": "bytes",
            "bpe_ranks": None,
            "bpe_vocab": None,
            "data_dir": str(tmp_path / "shards"),
            "workers": 2,
        }
        return DataConfig(**{**values, **changes})

    return make
