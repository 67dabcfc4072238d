"""Files as documents: separators, encodings, records, and every way a file can be unusable."""

import gzip
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lib.config.errors import DataError
from lib.data import files


def documents(path: Path) -> list[str]:
    """The documents of a file, whole and without the empty ones."""
    found, parts = [], []
    for text, ends in files.read(path):
        parts.append(text)
        if ends:
            found.append("".join(parts))
            parts = []
    assert not parts
    return [document for document in found if document]


def written(path: Path, data: bytes) -> Path:
    if path.name.endswith(".gz"):
        data = gzip.compress(data)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_separator_line_ends_a_document_and_belongs_to_none(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, b"one\n<|endoftext|>\ntwo\r\n<|endoftext|>\r\n<|endoftext|>\n\nthree")
    assert documents(path) == ["one\n", "two\r\n", "\nthree"]


@pytest.mark.parametrize("text", ["x <|endoftext|>\ny", "<|endoftext|> x\ny", "x<|endoftext|>", " <|endoftext|>\nx"])
def test_only_a_whole_line_separates(tmp_path: Path, text: str) -> None:
    assert documents(written(tmp_path / "a.txt", text.encode())) == [text]


@pytest.mark.parametrize("text", ["<|endoftext|>", "<|endoftext|>\n", ""])
def test_a_file_of_separators_has_no_document(tmp_path: Path, text: str) -> None:
    assert documents(written(tmp_path / "a.txt", text.encode())) == []


@pytest.mark.parametrize("block", [1, 2, 7, 40, 1000])
def test_the_block_size_of_reading_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    text = "früh\n<|endoftext|>\n{}<|endoftext|>\n\n😀\n<|endoftext|>\nz<|endoftext|>".format("lange Zeile € " * 9)
    path = written(tmp_path / "a.txt", text.encode())
    whole = documents(path)
    assert len(whole) == 3
    monkeypatch.setattr(files, "_PIECE", block)
    assert documents(path) == whole


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("block", [4, 1 << 20])
@pytest.mark.parametrize("before", ["", "good\n", "good\n<|endoftext|>\nè\n", "a long line, ümlauts and no end"])
@pytest.mark.parametrize("bad", [b"\xe9t\xe9", b"\xff", b"\xe2\x82"])
def test_no_utf8_is_named_with_file_and_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block: int, before: str, bad: bytes
) -> None:
    monkeypatch.setattr(files, "_PIECE", block)
    path = written(tmp_path / name, before.encode() + bad)
    with pytest.raises(DataError, match=rf"{name}: not UTF-8: byte {len(before.encode())} is 0x{bad[0]:02x}"):
        documents(path)


def test_a_missing_or_unreadable_file_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path / "none.parquet", tmp_path / "none.jsonl"):
        with pytest.raises(DataError, match=r"none.*No such file"):
            documents(path)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz"])
def test_a_damaged_gzip_file_is_one_line(tmp_path: Path, name: str) -> None:
    whole = gzip.compress(json.dumps({"text": "word " * 1000}).encode())
    for damaged in (b"plain", whole[: len(whole) // 2], whole[:-4] + b"\0\0\0\0"):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(DataError, match="damaged gzip file"):
            documents(tmp_path / name)


def test_json_lines_give_a_document_per_line(tmp_path: Path) -> None:
    lines = '{"text": "one\\n<|endoftext|>\\n", "id": 3}\n\n{"text": ""}\n{"text": "zwölf"}'
    for name in ("a.jsonl", "a.jsonl.gz", "a.ndjson"):
        assert documents(written(tmp_path / name, lines.encode())) == ["one\n<|endoftext|>\n", "zwölf"]


@pytest.mark.parametrize("line", ['{"txt": "a"}', '{"text": 3}', "[1]", "not json", '{"text": null}', '"text"'])
def test_a_line_without_text_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:2: not a JSON object"):
        documents(written(tmp_path / "a.jsonl", ('{"text": "fine"}\n' + line).encode()))


def test_parquet_gives_a_document_per_row(tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(700)]
    table = pyarrow.table({"id": list(range(701)), "text": [*texts, None]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    assert documents(tmp_path / "a.parquet") == texts


def test_unusable_parquet_is_one_line(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"content": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no column `text`; it has content"):
        documents(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="not readable as parquet") as found:
        documents(written(tmp_path / "b.parquet", b"PAR1 no"))
    assert "\n" not in str(found.value)


def test_a_downloaded_folder_gives_its_best_kind_of_file_with_train_first(tmp_path: Path) -> None:
    for name in ("README.md", "infos.json", ".git/x.parquet", "data/test-0.jsonl", "data/train-0.jsonl", "z.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert [p.name for p in files.records_in(tmp_path)] == ["train-0.jsonl", "test-0.jsonl"]
    (tmp_path / "b.parquet").write_text("")
    assert [p.name for p in files.records_in(tmp_path)] == ["b.parquet"]


def test_a_folder_without_data_is_named(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("x")
    with pytest.raises(DataError, match="no parquet, JSON-lines"):
        files.records_in(tmp_path)


def test_the_state_follows_content_and_for_large_files_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.txt", b"text")
    os.utime(path, ns=(1, 1))

    def state() -> object:
        return files.state_of([path], path)

    before = state()
    os.utime(path, ns=(2, 2))
    assert state() == before
    path.write_bytes(b"tExt")
    assert state() != before
    monkeypatch.setattr(files, "HASHED_BYTES", 3)
    before = state()
    assert state() == before
    os.utime(path, ns=(3, 3))
    assert state() != before
