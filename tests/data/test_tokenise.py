"""The stream of tokens is what encoding every document whole would give, however it is cut, grouped and threaded."""

import hashlib
import io
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.config.errors import DataError
from lib.data import tokenise
from lib.data.files import Piece
from lib.data.tokenise import Meter, groups, token_at, write_tokens
from lib.data.tokenizers import Bytes, GPT2Tokenizer, Tokenizer, train

NASTY = " \n\t\r\u00a0\u2028\x1c\x85\u3000'sab1é東😀.-<"


def nasty_text(seed: int, length: int) -> str:
    return "".join(random.Random(seed).choices(NASTY, weights=[6, 3] + [1] * (len(NASTY) - 2), k=length))


def in_pieces(documents: list[str], seed: int) -> Iterator[Piece]:
    """The documents cut at random."""
    rng = random.Random(seed)
    for document in documents:
        start = 0
        while start < len(document):
            end = start + rng.randint(1, 60)
            yield document[start:end], False
            start = end
        yield "", True


def stream(pieces: Iterator[Piece], tokenizer: Tokenizer, workers: int = 2) -> list[int]:
    file = io.BytesIO()
    found = write_tokens(pieces, tokenizer, "<u4", workers, file, lambda count: None)
    assert found.sha256 == hashlib.sha256(file.getvalue()).hexdigest()
    tokens = np.frombuffer(file.getvalue(), dtype="<u4").tolist()
    assert found.tokens == len(tokens)
    return tokens


def whole(documents: list[str], tokenizer: Tokenizer) -> list[int]:
    """The oracle: each document at once, a separator between two."""
    found: list[int] = []
    for document in filter(None, documents):
        found += [tokenizer.separator] if found else []
        found += tokenizer.encode(document).tolist()
    return found


@pytest.fixture(scope="module", params=["bytes", "gpt2", "trained"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "gpt2":
        shared: Path = request.getfixturevalue("shared_data")
        return GPT2Tokenizer(shared / "gpt2.tiktoken")
    return Bytes() if request.param == "bytes" else train([nasty_text(0, 20000)], 600)


@pytest.mark.parametrize("group", [1, 16, 100, 10**6])
def test_cut_documents_encode_to_what_the_whole_would(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    monkeypatch.setattr(tokenise, "GROUP", group)
    for seed in range(20):
        documents = [nasty_text(seed * 7 + i, length) for i, length in enumerate((500, 0, 3, 0, 0, 90, 1))]
        assert stream(in_pieces(documents, seed), tokenizer) == whole(documents, tokenizer)


@given(st.lists(st.text(), max_size=5), st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_grouping_loses_and_adds_nothing(documents: list[str], group: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenise, "GROUP", group)
        parts = [part for found in groups(in_pieces(documents, 0)) for part in found]
    assert all(text for _, text in parts)
    assert "".join("\0\0" * between + text for between, text in parts) == "\0\0".join(filter(None, documents))


def test_a_long_document_is_cut_for_several_threads() -> None:
    found = list(groups(iter([("word " * 200_000, True)])))
    assert len(found) >= 3
    assert max(len(text) for group in found for _, text in group) <= tokenise.GROUP


def test_the_number_of_threads_changes_nothing(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenise, "GROUP", 50)
    documents = [nasty_text(i, 400) for i in range(10)]
    one, four = (stream(in_pieces(documents, 1), tokenizer, workers) for workers in (1, 4))
    assert one == four


def test_the_vocabulary_is_trained_on_the_same_words_however_the_text_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    text = nasty_text(3, 5000)
    at_once = train([text], 300).json
    monkeypatch.setattr(tokenise, "GROUP", 64)
    assert train((part for group in groups(in_pieces([text], 2)) for _, part in group), 300).json == at_once


def test_reading_stays_a_few_groups_ahead_of_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenise, "GROUP", 10)
    read = written = furthest = 0

    def pieces() -> Iterator[Piece]:
        nonlocal read
        for _ in range(1000):
            read += 10
            yield "ten bytes.", True

    def progress(count: int) -> None:
        nonlocal written, furthest
        furthest = max(furthest, read - written)
        written += count

    write_tokens(pieces(), Bytes(), "<u2", 2, io.BytesIO(), progress)
    assert written == 10_000
    assert furthest <= 10 * (tokenise.AHEAD * 2 + 2)


@pytest.mark.parametrize("limit", range(9))
def test_the_corpus_is_cut_at_a_whole_character(limit: int) -> None:
    meter = Meter(limit)
    text = "".join(piece for piece, _ in meter.read(iter([("aé", True), ("€b", False), ("c", True)])))
    assert text == "aé€bc".encode()[:limit].decode(errors="ignore")
    assert meter.bytes == len(text.encode())


def test_nothing_is_read_beyond_the_limit() -> None:
    def endless() -> Iterator[Piece]:
        yield "12345", True
        yield "678", True
        raise AssertionError("read on")

    meter = Meter(8)
    assert list(meter.read(endless())) == [("12345", True), ("678", True)]
    assert meter.documents == 2


def test_the_corpus_hash_knows_documents_and_not_pieces() -> None:
    def sha256(*pieces: Piece) -> str:
        meter = Meter(None)
        assert list(meter.read(iter(pieces)))
        return meter.sha256

    in_pieces = sha256(("ab", False), ("c", True), ("", True), ("d", False), ("", True))
    assert in_pieces == sha256(("abc", True), ("d", True))
    assert sha256(("ab", True), ("cd", True)) != sha256(("abc", True), ("d", True))
    assert sha256(("ab", True), ("cd", True)) != sha256(("abcd", True))


def test_half_a_surrogate_pair_is_named() -> None:
    with pytest.raises(DataError, match=r"document 2 of the corpus holds U\+D800"):
        list(Meter(None).read(iter([("fine", True), ("a\ud800", True)])))


def test_a_place_is_found_as_by_counting_every_token(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenise, "GROUP", 40)
    file = io.BytesIO()
    documents = [nasty_text(i, 60) for i in range(6)]
    found = write_tokens(in_pieces(documents, 0), tokenizer, "<u4", 2, file, lambda count: None)
    tokens = np.frombuffer(file.getvalue(), dtype="<u4")
    lengths = tokenizer.token_bytes()
    begins = [0, *np.cumsum(lengths[tokens]).tolist()]
    for place in range(begins[-1] + 1):
        slow = next(i for i, begin in enumerate(begins) if begin >= place)
        assert token_at(place, found.marks, tokens, lengths) == slow
