"""Corpora at their published homes, streamed with the `datasets` library: nothing but the shards is kept.

Without a connection there is one line and a way out, soon: the hub is first asked for a sign of life, because the
library itself retries for minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lib.config.errors import DataError
from lib.data.deadline import in_short, within
from lib.data.files import Piece

ANSWER_SECONDS = 5.0  # for a sign of life
FIRST_ROW_SECONDS = 120.0  # for listing the files of a large corpus and opening the first


@dataclass(frozen=True)
class Home:
    """A data set on the hub: parquet files with a column `text`, read split after split."""

    repository: str
    subset: str | None = None
    revision: str | None = None
    splits: tuple[str, ...] = ("train",)

    def state(self) -> dict[str, Any]:
        """What decides the text, known without contact: shards once written are used from then on."""
        return {"repository": self.repository, "subset": self.subset, "revision": self.revision, "splits": self.splits}


HOMES = {
    # The main branch holds a loading script, which `datasets` no longer runs; this commit is its parquet conversion.
    "shakespeare": Home(
        "karpathy/tiny_shakespeare",
        revision="fe12e06d82fe3af4291b90426557387520d81385",
        splits=("train", "validation", "test"),
    ),
    "openwebtext": Home("Skylion007/openwebtext"),
    "finewebedu": Home("HuggingFaceFW/fineweb-edu", subset="sample-10BT"),
}


def stream(name: str) -> Iterator[Piece]:
    """The documents of HOMES[name] in their published order. Raises DataError, in one line, for whatever goes wrong."""
    home = HOMES[name]
    try:
        within(ANSWER_SECONDS + 1, _ask)
        for split in home.splits:
            rows = within(FIRST_ROW_SECONDS, lambda split=split: _open(home, split))  # type: ignore[misc]
            first = within(FIRST_ROW_SECONDS, lambda rows=rows: next(rows, None))  # type: ignore[misc]
            if first is None:
                raise ValueError(f"split {split} is empty")
            yield first["text"], True
            for row in rows:
                yield row["text"], True
    except Exception as error:
        raise DataError(
            f"{name}: {home.repository} on the hub cannot be read ({in_short(error)}); "
            "give a local copy: GPT2_DATA_PATH=a text file, or a folder of parquet or JSON-lines files"
        ) from None


def _ask() -> None:
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    get_session().head(constants.ENDPOINT, timeout=ANSWER_SECONDS)  # any answer will do


def _open(home: Home, split: str) -> Iterator[dict[str, Any]]:
    import datasets

    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    found = datasets.load_dataset(
        home.repository, home.subset, revision=home.revision, split=split, streaming=True
    ).select_columns(["text"])
    return iter(found)
