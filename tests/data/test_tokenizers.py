"""Tokenizers are lossless, count their bytes, and say in one line what they lack."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from lib.config.errors import DataError
from lib.data import tokenizers
from lib.data.tokenizers import Bytes, GPT2Tokenizer, Tokenizer, Trained, train

TEXT = "the quick brown fox, the lazy dog's tail; 12345 times\n\n\tüber café 東京 😀 <|endoftext|> the end  \n" * 20
OTHER = "Ein völlig anderer Text — с буквами, числами 0x1F и\u00a0\u2028пробелами <|endoftext|>"


def decoded(tokenizer: Trained, tokens: np.ndarray) -> str:
    from tokenizers import Tokenizer as Library

    return Library.from_str(tokenizer.json).decode(tokens.tolist(), skip_special_tokens=False)


@pytest.fixture(scope="session")
def gpt2(shared_data: Path) -> GPT2Tokenizer:
    return GPT2Tokenizer(shared_data / "gpt2.tiktoken")


def test_bytes_are_bytes_with_a_separator_after_them() -> None:
    tokenizer = Bytes()
    assert (tokenizer.vocab_size, tokenizer.separator) == (257, 256)
    assert bytes(tokenizer.encode(OTHER).tolist()).decode() == OTHER


def test_tiny_shakespeare_is_338025_gpt2_tokens(gpt2: GPT2Tokenizer, shared_data: Path) -> None:
    assert len(gpt2.encode((shared_data / "tinyshakespeare.txt").read_text(encoding="utf-8"))) == 338_025


def test_gpt2_has_its_own_vocabulary(gpt2: GPT2Tokenizer) -> None:
    assert (gpt2.vocab_size, gpt2.separator) == (50257, 50256)
    assert gpt2.encode("hello world").tolist() == [31373, 995]
    assert gpt2.encoding.decode(gpt2.encode(OTHER).tolist()) == OTHER


def test_the_same_text_trains_the_same_vocabulary() -> None:
    first, second = (train([TEXT, OTHER], 400) for _ in range(2))
    assert first.json == second.json
    assert first.fingerprint == second.fingerprint
    assert train([TEXT], 400).fingerprint != first.fingerprint


def test_a_trained_vocabulary_holds_256_bytes_and_the_separator() -> None:
    tokenizer = train([TEXT], 257)
    assert tokenizer.used == tokenizer.vocab_size == 257
    assert tokenizer.separator == 256
    assert len(tokenizer.encode(OTHER)) == len(OTHER.encode())


def test_a_small_text_leaves_ids_unused() -> None:
    tokenizer = train(["ab ab"], 5000)
    assert tokenizer.used < tokenizer.vocab_size == 5000
    assert len(tokenizer.token_bytes()) == 5000


def test_a_trained_vocabulary_decodes_what_it_encodes() -> None:
    tokenizer = train([TEXT], 400)
    for text in (TEXT, OTHER):
        tokens = tokenizer.encode(text)
        assert decoded(tokenizer, tokens) == text
        assert tokens.max() < tokenizer.vocab_size
    assert len(tokenizer.encode(TEXT)) < len(TEXT.encode()) / 2


def test_a_trained_vocabulary_survives_its_json() -> None:
    tokenizer = train([TEXT], 400)
    again = Trained(tokenizer.json, 400)
    assert again.encode(OTHER).tolist() == tokenizer.encode(OTHER).tolist()
    assert again.fingerprint == tokenizer.fingerprint


def each_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "gpt2":
        return request.getfixturevalue("gpt2")
    return Bytes() if request.param == "bytes" else train([TEXT], 400)


tokenizer = pytest.fixture(params=["bytes", "gpt2", "trained"])(each_tokenizer)


def test_the_separator_never_comes_from_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.separator not in tokenizer.encode("a\n<|endoftext|>\nb <|endoftext|>")


def test_token_bytes_sum_to_the_bytes_of_the_text(tokenizer: Tokenizer) -> None:
    lengths = tokenizer.token_bytes()
    assert lengths.shape == (tokenizer.vocab_size,)
    assert lengths[tokenizer.separator] == 0
    for text in (TEXT, OTHER, "".join(map(chr, random.Random(0).sample(range(0xD800), 5000)))):
        assert lengths[tokenizer.encode(text)].sum() == len(text.encode())


def test_other_ranks_than_gpt2s_are_refused(tmp_path: Path, shared_data: Path) -> None:
    lines = (shared_data / "gpt2.tiktoken").read_text().splitlines()
    few, swapped, noise = tmp_path / "few", tmp_path / "swapped", tmp_path / "noise"
    few.write_text("\n".join(lines[:50000]))
    first, second = lines[300].split()[0], lines[301].split()[0]
    swapped.write_text("\n".join([*lines[:300], f"{second} 300", f"{first} 301", *lines[302:]]))
    noise.write_text("vocab of my own\n")
    wrong = {few: "50,000 ranks", swapped: "50,256 ranks which are not GPT-2's", noise: "not in tiktoken"}
    for path, said in wrong.items():
        with pytest.raises(DataError, match=said) as found:
            GPT2Tokenizer(path)
        assert str(path) in str(found.value)


def test_the_order_of_lines_in_a_rank_file_does_not_matter(tmp_path: Path, shared_data: Path) -> None:
    lines = (shared_data / "gpt2.tiktoken").read_text().splitlines()
    (tmp_path / "reversed").write_text("\n".join(reversed(lines)) + "\n\n")
    assert GPT2Tokenizer(tmp_path / "reversed").fingerprint == tokenizers.GPT2_RANKS_SHA256


def test_a_missing_rank_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone: cannot be read.*GPT2_BPE_RANKS"):
        GPT2Tokenizer(tmp_path / "gone")


def test_without_a_connection_the_ranks_are_one_line_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken

    def fail(name: str) -> object:
        raise ConnectionError("Name or service not known\nand more")

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    with pytest.raises(DataError, match=r"cannot be fetched \(ConnectionError: Name.*GPT2_BPE_RANKS") as found:
        GPT2Tokenizer(None)
    assert found.value.exit_code == 3
    assert "\n" not in str(found.value)


def test_a_download_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    import tiktoken

    monkeypatch.setattr(tokenizers, "DOWNLOAD_SECONDS", 0.05)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: threading.Event().wait())
    with pytest.raises(DataError, match=r"no answer within"):
        GPT2Tokenizer(None)


def test_the_stored_json_is_the_librarys_own_format() -> None:
    stored = json.loads(train([TEXT], 300).json)
    assert stored["model"]["type"] == "BPE"
    assert [token["content"] for token in stored["added_tokens"]] == ["<|endoftext|>"]
