"""A corpus of any size to one stream of tokens, on several threads and in bounded memory.

Long documents are cut where GPT-2's pre-tokenization cuts anyway, before whitespace that follows something else: none
of its patterns reaches across such a place, so the pieces encode to what the whole would. Both byte-pair tokenizers
here use that pre-tokenization.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from lib.config.errors import DataError
from lib.data.files import Piece
from lib.data.tokenizers import Tokenizer, Tokens

GROUP = 1 << 16  # characters that one thread encodes at a time, of one long document or of many short ones
AHEAD = 8  # groups under way per thread: enough that none waits for the reader
_END = b"\xff"  # marks the end of a document in the corpus hash; no UTF-8 text holds this byte

_BEFORE_BLANK = re.compile(r"\S(?=[\n ])")

Part = tuple[bool, str]  # whether a separator comes first, and the text


class Meter:
    """Passes pieces on until `limit` bytes of UTF-8 (None: all), counting and hashing what it passes."""

    def __init__(self, limit: int | None) -> None:
        self.limit, self.bytes, self.documents = limit, 0, 0
        self._sha256 = hashlib.sha256()
        self._inside = False  # a document

    @property
    def sha256(self) -> str:
        """Of the documents and their boundaries, whatever files they came from."""
        return self._sha256.hexdigest()

    def read(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The pieces, cut at a whole character; the last one ends its document. Raises DataError for no UTF-8."""
        for text, ends in pieces:
            try:
                data = text.encode()
            except UnicodeEncodeError as error:
                raise DataError(
                    f"document {self.documents + 1:,} of the corpus holds U+{ord(text[error.start]):04X}, half of a "
                    "surrogate pair, which is no UTF-8; mend it or leave it out"
                ) from None
            full = self.limit is not None and self.bytes + len(data) >= self.limit
            if full:
                assert self.limit is not None
                text = data[: self.limit - self.bytes].decode(errors="ignore")
                data, ends = text.encode(), True
            self._count(data, ends)
            yield text, ends
            if full:
                return

    def _count(self, data: bytes, ends: bool) -> None:
        self.bytes += len(data)
        self._sha256.update(data)
        self._inside = self._inside or bool(data)
        if ends and self._inside:
            self._sha256.update(_END)
            self.documents += 1
            self._inside = False


def groups(pieces: Iterable[Piece]) -> Iterator[list[Part]]:
    """Pieces regrouped into parts that encode independently, if possible at most GROUP characters together."""
    group: list[Part] = []
    size = 0
    for part in _parts(pieces):
        if group and size + len(part[1]) > GROUP:
            yield group
            group, size = [], 0
        group.append(part)
        size += len(part[1])
    if group:
        yield group


def _parts(pieces: Iterable[Piece]) -> Iterator[Part]:
    held: list[str] = []  # the document's text since the last cut
    size = 0
    between = False  # the next text begins a document that is not the first
    for text, ends in pieces:
        start = 0
        while (cut := _place_to_cut(text, start, start + max(1, GROUP - size))) is not None:
            yield between, "".join([*held, text[start:cut]])
            held, size, between, start = [], 0, False, cut
        held.append(text[start:])
        size += len(text) - start
        if ends:
            if size:
                yield between, "".join(held)
                between = True
            held, size = [], 0


def _place_to_cut(text: str, start: int, wanted: int) -> int | None:
    """Before a line break, else a blank, that follows no whitespace: the last up to `wanted`, else the first after it.

    None when the text ends before `wanted`, or has no such place.
    """
    if wanted >= len(text):
        return None
    for blank in "\n ":
        at = text.rfind(blank, start + 1, wanted)
        while at > start and text[at - 1].isspace():
            at = text.rfind(blank, start + 1, at)
        if at > start:
            return at
    return next((m.start() + 1 for m in _BEFORE_BLANK.finditer(text, wanted)), None)


@dataclass(frozen=True)
class Stream:
    """What was written: tokens [n], their hash, and bytes and tokens before each mark for finding a place again."""

    tokens: int
    sha256: str
    marks: list[tuple[int, int]]


def write_tokens(
    pieces: Iterable[Piece],
    tokenizer: Tokenizer,
    dtype: npt.DTypeLike,
    workers: int,
    file: BinaryIO,
    progress: Callable[[int], None],
) -> Stream:
    """Encode `pieces` on `workers` threads into `file`, in order; `progress` is told the bytes of each group."""
    separator = np.array([tokenizer.separator], dtype=dtype)

    def encode(group: list[Part]) -> tuple[Tokens, int]:
        arrays: list[Tokens] = []
        size = 0
        for between, text in group:
            if between:
                arrays.append(separator)
            arrays.append(tokenizer.encode(text).astype(dtype))
            size += len(text.encode())
        return np.concatenate(arrays), size

    digest = hashlib.sha256()
    tokens = size = 0
    marks = [(0, 0)]
    with ThreadPoolExecutor(workers, thread_name_prefix="tokenise") as pool:
        for array, count in _in_order(pool, encode, groups(pieces), AHEAD * workers):
            data = array.data.cast("B")
            file.write(data)
            digest.update(data)
            tokens, size = tokens + len(array), size + count
            marks.append((size, tokens))
            progress(count)
    return Stream(tokens, digest.hexdigest(), marks)


def _in_order(
    pool: ThreadPoolExecutor, call: Callable[[list[Part]], tuple[Tokens, int]], items: Iterable[list[Part]], ahead: int
) -> Iterator[tuple[Tokens, int]]:
    """The results in the order of the items, with at most `ahead` items under way."""
    waiting: deque[Future[tuple[Tokens, int]]] = deque()
    for item in items:
        waiting.append(pool.submit(call, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def token_at(place: int, marks: list[tuple[int, int]], tokens: Tokens, token_bytes: Tokens) -> int:
    """The first token that begins at byte `place` of the text or later."""
    after = bisect_left(marks, place, key=lambda mark: mark[0])
    if after == 0:
        return 0
    (begin, first), (_, last) = marks[after - 1], marks[after]
    lengths = token_bytes[np.asarray(tokens[first:last])]
    return first + int(np.searchsorted(begin + np.cumsum(lengths) - lengths, place))
