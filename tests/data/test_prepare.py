"""prepare(): what a dataset holds, when it is written again, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lib.config.errors import ConfigError, DataError, UserError
from lib.config.fields import symbols_of
from lib.data import hub, shards
from lib.data import prepare as room
from lib.data.config import DataConfig, vocab_size_of
from lib.data.prepare import Dataset, prepare, prepared

Make = Callable[..., DataConfig]
WORDS = "".join(f"line {i} of a small text, with ümlauts\n" for i in range(400))


def quiet(line: str) -> None:
    """Nobody listens."""


def text_of(dataset: Dataset) -> bytes:
    """The corpus of a byte dataset, separators as 0xff."""
    both = np.concatenate([dataset.train, dataset.val])
    return bytes(np.where(both == 256, 255, both).astype(np.uint8).tolist())


def folders(config: DataConfig) -> list[str]:
    return sorted(os.listdir(config.data_dir)) if os.path.isdir(config.data_dir) else []


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(WORDS, encoding="utf-8")
    return path


# -- what a dataset holds --------------------------------------------------------------------------------------------


def test_a_dataset_is_its_text_in_two_memory_mapped_splits(config: Make, text: Path, tmp_path: Path) -> None:
    found = prepare(config(path="text.txt"), tmp_path, quiet)
    assert text_of(found) == WORDS.encode()
    assert found.bytes == len(WORDS.encode())
    assert isinstance(found.train, np.memmap)
    assert isinstance(found.val, np.memmap)
    assert found.train.dtype == np.uint16
    assert found.vocab_size == len(found.token_bytes) == 257
    assert found.name == "textfile-bytes"
    assert len(found.fingerprint) == 64


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5])
def test_validation_is_the_last_share_of_bytes(config: Make, text: Path, tmp_path: Path, fraction: float) -> None:
    found = prepare(config(path=str(text), val_fraction=fraction), tmp_path, quiet)
    assert len(found.train) == int(found.bytes * (1 - fraction))


@pytest.mark.parametrize("tokenizer", ["bytes", "gpt2", "trained"])
def test_every_tokenizer_holds_out_the_same_text_up_to_a_token(
    config: Make, text: Path, tmp_path: Path, shared_data: Path, tokenizer: str
) -> None:
    ranks = str(shared_data / "gpt2.tiktoken") if tokenizer == "gpt2" else None
    made = config(path=str(text), tokenizer=tokenizer, bpe_ranks=ranks, bpe_vocab=400)
    found = prepare(made, tmp_path, quiet)
    sizes = [int(found.token_bytes[split].sum()) for split in (found.train, found.val)]
    assert sum(sizes) == found.bytes == len(WORDS.encode())
    over = sizes[0] - int(found.bytes * 0.9)
    assert 0 <= over < found.token_bytes[found.train[-1]]
    assert found.vocab_size == vocab_size_of(made)


def test_tiny_shakespeare_has_the_classic_splits(config: Make, shared_data: Path, tmp_path: Path) -> None:
    path, ranks = shared_data / "tinyshakespeare.txt", shared_data / "gpt2.tiktoken"
    for dataset in ("shakespeare", "textfile"):
        made = config(dataset=dataset, path=str(path), tokenizer="gpt2", bpe_ranks=str(ranks))
        found = prepare(made, tmp_path, quiet)
        assert (len(found.train), len(found.val)) == (301_966, 36_059)
        by_byte = prepare(config(dataset=dataset, path=str(path)), tmp_path, quiet)
        assert (len(by_byte.train), len(by_byte.val)) == (1_003_854, 111_540)


def test_documents_are_separated_by_one_token(config: Make, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n<|endoftext|>\n<|endoftext|>\ntwo\n<|endoftext|>\n")
    assert text_of(prepare(config(path="a.txt"), tmp_path, quiet)) == b"one\n\xfftwo\n"


def test_a_folder_is_read_in_the_order_of_its_paths_without_hidden_and_binary_files(
    config: Make, tmp_path: Path
) -> None:
    for name, data in {
        "in/b.txt": b"B", "in/a/z.md": b"Z", "in/a.txt": b"A", "in/.git/x": b"H", "in/.h": b"H", "in/p.png": b"\x89P\0",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    found = prepare(config(dataset="textdir", path="in"), tmp_path, quiet)
    assert text_of(found) == b"A\xffZ\xffB"  # "." sorts before "/"


def test_the_corpus_is_cut_after_max_mb(config: Make, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("€" * 500_000)
    found = prepare(config(path="a.txt", max_mb=1), tmp_path, quiet)
    assert found.bytes == len(found.train) + len(found.val) == 999_999
    assert prepare(config(path="a.txt", max_mb=2), tmp_path, quiet).bytes == 1_500_000


def test_synthetic_text_is_a_function_of_its_seed(config: Make, tmp_path: Path) -> None:
    def made(seed: int, where: str) -> Dataset:
        data_dir = str(tmp_path / where)
        return prepare(
            config(dataset="synthetic", synthetic_mb=1, synthetic_seed=seed, data_dir=data_dir), tmp_path, quiet
        )

    first, again, other = made(1, "a"), made(1, "b"), made(2, "a")
    assert first.bytes == other.bytes == 1_000_000
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint[:16] == "4221b17ba5cabf92"  # for all time, and on any machine
    assert first.fingerprint != other.fingerprint


def test_the_standard_library_needs_no_download(config: Make, tmp_path: Path) -> None:
    found = prepare(config(dataset="pystdlib"), tmp_path, quiet)
    assert found.bytes > 5_000_000
    text = text_of(found)
    assert b"class JSONDecoder" in text
    assert text.count(b"\xff") > 400
    assert b"class BaseTestCase" not in text


def test_a_large_vocabulary_takes_four_bytes_a_token(config: Make, text: Path, tmp_path: Path) -> None:
    found = prepare(config(path=str(text), tokenizer="trained", bpe_vocab=70_000), tmp_path, quiet)
    assert found.train.dtype == np.uint32
    assert found.vocab_size == len(found.token_bytes) == 70_000


def test_a_trained_vocabulary_never_sees_the_text_held_out(config: Make, tmp_path: Path) -> None:
    common, held_out = "the cat sat on the mat " * 90, "xyzzy " * 41
    (tmp_path / "a.txt").write_text(common + held_out)
    found = prepare(config(path="a.txt", tokenizer="trained", bpe_vocab=300, val_fraction=0.106), tmp_path, quiet)
    learned = (found.folder / "tokenizer.json").read_text()
    assert "mat" in learned
    assert "zz" not in learned


def test_a_trained_vocabulary_is_the_same_in_another_place(config: Make, text: Path, tmp_path: Path) -> None:
    made = [
        prepare(config(path=str(text), tokenizer="trained", bpe_vocab=350, data_dir=where), tmp_path, quiet)
        for where in ("a", "b")
    ]
    assert made[0].fingerprint == made[1].fingerprint
    assert (made[0].folder / "tokenizer.json").read_bytes() == (made[1].folder / "tokenizer.json").read_bytes()


def test_the_number_of_workers_changes_no_token(config: Make, text: Path, tmp_path: Path) -> None:
    made = [prepare(config(path=str(text), workers=n, data_dir=str(n)), tmp_path, quiet) for n in (1, 3)]
    assert made[0].fingerprint == made[1].fingerprint


def test_the_fingerprint_is_of_the_content_not_of_the_file(config: Make, text: Path, tmp_path: Path) -> None:
    first = prepare(config(path=str(text)), tmp_path, quiet)
    (tmp_path / "in").mkdir()
    shutil.copy(text, tmp_path / "in" / "copy")
    from_folder = prepare(config(dataset="textdir", path="in"), tmp_path, quiet)
    assert from_folder.fingerprint == first.fingerprint
    assert prepare(config(path=str(text), val_fraction=0.2), tmp_path, quiet).fingerprint != first.fingerprint
    text.write_text(WORDS.replace("7", "8"), encoding="utf-8")
    assert prepare(config(path=str(text)), tmp_path, quiet).fingerprint != first.fingerprint


def test_every_setting_has_its_symbol() -> None:
    fields = set(DataConfig.__dataclass_fields__)
    assert len(symbols_of(DataConfig)) == len(fields)


def test_the_configuration_needs_no_heavy_import() -> None:
    code = "import sys, lib.data.config; print(sorted({'torch', 'numpy', 'datasets', 'tokenizers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- when it is written again ----------------------------------------------------------------------------------------


def test_the_second_start_reads_what_the_first_wrote(
    config: Make, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(path=str(text), tokenizer="trained", bpe_vocab=300)
    first = prepare(made, tmp_path, quiet)
    monkeypatch.setattr(room, "_write", None)
    second = prepare(made, tmp_path, quiet)
    assert second.fingerprint == first.fingerprint
    assert np.array_equal(second.token_bytes, first.token_bytes)


def test_prepared_is_what_is_there_and_writes_nothing(config: Make, text: Path, tmp_path: Path) -> None:
    assert prepared(config(path=str(text)), tmp_path) is None
    assert folders(config()) == []
    found = prepare(config(path=str(text)), tmp_path, quiet)
    again = prepared(config(path=str(text)), tmp_path)
    assert again is not None
    assert again.fingerprint == found.fingerprint
    assert prepared(config(path=str(text), val_fraction=0.3), tmp_path) is None


def test_a_changed_text_is_tokenised_into_a_new_folder(config: Make, text: Path, tmp_path: Path) -> None:
    made = config(path=str(text))
    first = prepare(made, tmp_path, quiet)
    before = text.stat()
    text.write_text(WORDS.replace("small", "SMALL"), encoding="utf-8")
    os.utime(text, ns=(before.st_atime_ns, before.st_mtime_ns))  # an edit that hides behind its size and time
    second = prepare(made, tmp_path, quiet)
    assert b"SMALL" in text_of(second)
    assert first.folder != second.folder
    assert first.folder.is_dir()
    text.write_text(WORDS, encoding="utf-8")
    assert prepare(made, tmp_path, quiet).folder == first.folder


def test_other_settings_are_other_folders(config: Make, text: Path, tmp_path: Path) -> None:
    changes = [{}, {"val_fraction": 0.2}, {"max_mb": 1}, {"tokenizer": "trained", "bpe_vocab": 300}]
    changes += [{"tokenizer": "trained", "bpe_vocab": 301}, {"dataset": "openwebtext"}]
    found = [prepare(config(path=str(text), **change), tmp_path, quiet).folder for change in changes]
    assert len(set(found)) == len(changes)
    prepare(config(path=str(text), workers=1), tmp_path, quiet)
    assert len(folders(config())) == len(changes)


@pytest.mark.parametrize("name", ["tokens.bin", "token_bytes.bin", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["one bit", "shorter", "gone"])
def test_an_altered_shard_is_named_with_the_way_out(
    config: Make, text: Path, tmp_path: Path, name: str, damage: str
) -> None:
    made = config(path=str(text), tokenizer="trained", bpe_vocab=300)
    path = prepare(made, tmp_path, quiet).folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data if damage == "one bit" else data[:-2])
    with pytest.raises(DataError, match=rf"{name}: altered since it was written.*remove {path.parent}") as found:
        prepare(made, tmp_path, quiet)
    assert found.value.exit_code == 3
    shutil.rmtree(path.parent)
    assert prepare(made, tmp_path, quiet).vocab_size == 300


@pytest.mark.parametrize("key", ["train_tokens", "val_tokens", "settings", "tokens_sha256", "format", "vocab_size"])
def test_an_altered_manifest_is_named(config: Make, text: Path, tmp_path: Path, key: str) -> None:
    made = config(path=str(text))
    path = prepare(made, tmp_path, quiet).folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for damaged in ({**manifest, key: 5}, {k: v for k, v in manifest.items() if k != key}, [], None):
        path.write_text(json.dumps(damaged) if damaged is not None else "{")
        with pytest.raises(DataError, match=r"manifest\.json: altered"):
            prepare(made, tmp_path, quiet)


def test_a_large_shard_is_hashed_only_when_its_time_has_changed(
    config: Make, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(path=str(text))
    path = prepare(made, tmp_path, quiet).folder / "tokens.bin"
    monkeypatch.setattr(shards, "HASHED_BYTES", 1000)
    before = path.stat()
    data = bytearray(path.read_bytes())
    os.utime(path, ns=(5, 5))
    assert prepare(made, tmp_path, quiet).bytes == len(WORDS.encode())
    data[0] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="altered"):
        prepare(made, tmp_path, quiet)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    prepare(made, tmp_path, quiet)


# -- several at once, and failures -----------------------------------------------------------------------------------


def test_processes_that_prepare_at_once_agree_and_leave_one_folder(config: Make, text: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lib.data.prepare import DataConfig, prepare;"
        f"c = DataConfig('textfile', {str(text)!r}, 0, None, None, 0.1, 'bytes', None, None, {config().data_dir!r}, 1);"
        "sys.stdin.read(1); print(prepare(c, Path('/'), lambda line: None).fingerprint)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(4)]
    for process in started:
        assert process.stdin
        process.stdin.write("g")
        process.stdin.flush()
    outputs = [process.communicate() for process in started]
    assert [error for _, error in outputs] == [""] * 4
    assert len({out for out, _ in outputs}) == 1
    assert len(folders(config())) == 1


@pytest.mark.parametrize("has_locks", [True, False])
def test_who_comes_second_uses_what_the_first_wrote(
    config: Make, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_locks: bool
) -> None:
    made = config(path=str(text))
    write = room._write
    firsts: list[Dataset] = []

    def overtaken(*arguments: object) -> None:
        monkeypatch.setattr(room, "_write", write)
        if not has_locks:
            firsts.append(prepare(made, tmp_path, quiet))
        write(*arguments)  # type: ignore[arg-type]

    if not has_locks:
        monkeypatch.setattr(shards, "_lock", lambda descriptor, wait: False)
    monkeypatch.setattr(room, "_write", overtaken)
    found = prepare(made, tmp_path, quiet)
    assert [first.folder for first in firsts] == [found.folder] * len(firsts)
    assert folders(made) == [found.folder.name]


def test_a_failed_preparation_leaves_nothing(config: Make, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\n" * 1000 + b"\xff")
    made = config(path="a.txt")
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8: byte 5,000"):
        prepare(made, tmp_path, quiet)
    assert folders(made) == []


def test_what_a_killed_preparation_left_is_removed_by_the_next(config: Make, text: Path, tmp_path: Path) -> None:
    made = config(path=str(text))
    name = prepare(made, tmp_path, quiet).folder.name
    shutil.move(Path(made.data_dir) / name, Path(made.data_dir) / f".{name}.123-abcdef.part")
    (Path(made.data_dir) / f".{name}.lock").touch()
    prepare(made, tmp_path, quiet)
    assert folders(made) == [name]


def test_a_text_that_changes_while_it_is_read_is_refused(
    config: Make, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = room.write_tokens

    def meanwhile(*arguments: object) -> object:
        found = real(*arguments)  # type: ignore[arg-type]
        text.write_text("half of it")
        return found

    monkeypatch.setattr(room, "write_tokens", meanwhile)
    with pytest.raises(DataError, match="changed while it was read"):
        prepare(config(path=str(text)), tmp_path, quiet)
    assert folders(config()) == []


def test_a_folder_that_cannot_be_written_is_named(config: Make, text: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DataError, match=r"taken.*GPT2_DATA_DIR"):
        prepare(config(path=str(text), data_dir=str(tmp_path / "taken")), tmp_path, quiet)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"path": "none.txt"}, DataError, "none.txt: no such file or folder"),
        ({"path": "."}, DataError, "a folder; GPT2_DATASET=textfile"),
        ({"path": "text.txt", "dataset": "textdir"}, DataError, "a file; GPT2_DATASET=textdir"),
        ({"path": "empty.txt"}, DataError, "no text in it"),
        ({"path": "empty", "dataset": "textdir"}, DataError, "no text files under it"),
        ({"path": "empty", "dataset": "finewebedu"}, DataError, "no parquet, JSON-lines"),
        ({"path": ""}, ConfigError, "GPT2_DATASET=textfile needs GPT2_DATA_PATH"),
        ({"path": "text.txt", "dataset": "pystdlib"}, ConfigError, "has no use with GPT2_DATASET=pystdlib"),
        ({"path": "text.txt", "tokenizer": "gpt2", "bpe_ranks": "none"}, DataError, "none: cannot be read"),
    ],
)
def test_a_mistake_is_one_line(
    config: Make, text: Path, tmp_path: Path, changes: dict[str, str], error: type[UserError], said: str
) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=said.replace(".", r"\.")) as found:
        prepare(config(**changes), tmp_path, quiet)
    assert "\n" not in str(found.value)
    assert folders(config()) == []


# -- the hub ---------------------------------------------------------------------------------------------------------


def test_shards_of_the_hub_are_used_without_contact(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(dataset="finewebedu")
    monkeypatch.setattr(hub, "stream", lambda name: iter([("one " * 50, True), ("two " * 50, True)]))
    first = prepare(made, tmp_path, quiet)
    monkeypatch.setattr(hub, "stream", None)
    assert prepare(made, tmp_path, quiet).fingerprint == first.fingerprint
