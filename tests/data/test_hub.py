"""Published corpora: streamed in their order, replaced by local copies, and one prompt line without a connection."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lib.config.errors import DataError
from lib.data import hub
from lib.data.config import DataConfig
from lib.data.deadline import within
from lib.data.prepare import prepare

Make = Callable[..., DataConfig]
ROWS = {
    "train": ["Before we proceed any further, ", "hear me speak.\n"] * 20,
    "validation": ["Speak, "],
    "test": ["speak.\n"],
}


def quiet(line: str) -> None:
    """Nobody listens."""


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that answers with ROWS."""

    def rows(home: hub.Home, split: str) -> Iterator[dict[str, Any]]:
        return iter([{"text": text} for text in ROWS[split]])

    monkeypatch.setattr(hub, "_ask", lambda: None)
    monkeypatch.setattr(hub, "_open", rows)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A local port in place of the hub, which takes connections and never answers."""
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


def refused(name: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as found:
        next(hub.stream(name))
    assert found.value.exit_code == 3
    assert "\n" not in str(found.value)
    assert hub.HOMES[name].repository in str(found.value)
    assert "GPT2_DATA_PATH=" in str(found.value)


@pytest.mark.parametrize("name", sorted(hub.HOMES))
def test_no_connection_is_one_line_with_the_way_out(name: str, endpoint: socket.socket) -> None:
    endpoint.close()
    refused(name, "cannot be read")


def test_a_hub_that_never_answers_is_given_up(endpoint: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.05)
    refused("finewebedu", "cannot be read")


def test_offline_mode_is_respected(endpoint: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("openwebtext", "HF_HUB_OFFLINE is set")


@pytest.mark.parametrize(
    "error", [RuntimeError("Dataset scripts\nare gone"), KeyError("text"), OSError(), ValueError("")]
)
def test_whatever_the_library_raises_is_one_line(
    online: None, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(home: hub.Home, split: str) -> Any:
        raise error

    monkeypatch.setattr(hub, "_open", fail)
    refused("openwebtext", "cannot be read")


def test_a_connection_lost_on_the_way_is_one_line_and_leaves_nothing(
    online: None, config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(home: hub.Home, split: str) -> Iterator[dict[str, Any]]:
        yield from ({"text": "some text "} for _ in range(100))
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(hub, "_open", lost)
    with pytest.raises(DataError, match="reset by peer"):
        prepare(config(dataset="finewebedu"), tmp_path, quiet)
    assert list((tmp_path / "shards").iterdir()) == []


def test_rows_come_in_the_published_order_split_after_split(online: None) -> None:
    assert [text for text, _ in hub.stream("shakespeare")] == ROWS["train"] + ROWS["validation"] + ROWS["test"]
    assert [text for text, _ in hub.stream("openwebtext")] == ROWS["train"]


def test_the_library_streams_parquet_as_this_room_asks_it_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, texts in ROWS.items():
        table = pyarrow.table({"id": list(range(len(texts))), "text": texts})
        pyarrow.parquet.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    monkeypatch.setattr(hub, "_ask", lambda: None)
    monkeypatch.setitem(hub.HOMES, "here", hub.Home(str(tmp_path), splits=("train", "validation", "test")))
    assert [text for text, _ in hub.stream("here")] == ROWS["train"] + ROWS["validation"] + ROWS["test"]


def test_shakespeare_is_one_document(online: None, config: Make, tmp_path: Path) -> None:
    found = prepare(config(dataset="shakespeare"), tmp_path, quiet)
    assert 256 not in found.train
    assert found.bytes == len(found.train) + len(found.val)
    assert 256 in prepare(config(dataset="openwebtext"), tmp_path, quiet).train


def test_a_local_copy_of_any_format_equals_the_published_corpus(online: None, config: Make, tmp_path: Path) -> None:
    published = prepare(config(dataset="openwebtext"), tmp_path, quiet)
    texts = ROWS["train"]
    (tmp_path / "p" / "data").mkdir(parents=True)
    for part, some in enumerate((texts[:7], texts[7:])):
        table = pyarrow.table({"text": some, "id": list(range(len(some)))})
        pyarrow.parquet.write_table(table, tmp_path / "p" / "data" / f"train-{part}.parquet")
    (tmp_path / "j").mkdir()
    (tmp_path / "j" / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    for path in ("p", "j", "p/../j/a.jsonl"):
        assert prepare(config(dataset="openwebtext", path=path), tmp_path, quiet).fingerprint == published.fingerprint


def test_a_local_copy_of_shakespeare_in_splits_is_in_their_order(online: None, config: Make, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for split, texts in ROWS.items():
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "s" / f"{split}-0.parquet")
    (tmp_path / "s.txt").write_text("".join(ROWS["train"] + ROWS["validation"] + ROWS["test"]))
    made = [prepare(config(dataset="shakespeare", path=path), tmp_path, quiet) for path in ("", "s.txt")]
    assert made[0].fingerprint == made[1].fingerprint


def test_the_room_imports_no_hub_library_until_it_needs_one() -> None:
    heavy = "{'torch', 'datasets', 'huggingface_hub', 'pyarrow', 'tiktoken', 'tokenizers'}"
    code = f"import sys, lib.data.prepare; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_deadline_passes_on_what_the_call_gives_or_raises() -> None:
    assert within(5, lambda: 3) == 3
    assert within(5, lambda: None) is None
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)
    with pytest.raises(TimeoutError):
        within(0.01, lambda: threading.Event().wait())
