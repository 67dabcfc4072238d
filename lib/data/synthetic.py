"""Seeded text with something to learn: words of a small invented language, each followed by few others.

A word's successors are fixed and drawn with harmonic weights (Zipf), so a model that learns pairs beats one that counts
words. Only raw bits of Philox are used: they are the same in every version of NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from lib.data.files import Piece

VERSION = 1
_WORDS, _SUCCESSORS = 2048, 32
_DOCUMENTS, _LENGTH = 256, 256  # documents made at a time, words of each
_ONSETS = ("b", "br", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "st", "t", "v", "z")
_RHYMES = ("a", "e", "i", "o", "u", "an", "el", "in", "or", "us")


def pieces(seed: int, size: int) -> Iterator[Piece]:
    """Documents of about 256 words, `size` bytes of ASCII altogether."""
    words = _vocabulary()
    successors = _bits(seed, 0, _WORDS * _SUCCESSORS).reshape(_WORDS, _SUCCESSORS) % np.uint64(_WORDS)
    weights = 1.0 / np.arange(1, _SUCCESSORS + 1)
    steps = np.cumsum(weights / weights.sum())[:-1]
    left, batch = size, 0
    while left > 0:
        batch += 1
        draws = _bits(seed, batch, _DOCUMENTS * (_LENGTH + 1)).reshape(_LENGTH + 1, _DOCUMENTS)
        choices = np.searchsorted(steps, (draws >> np.uint64(11)) * 2.0**-53, side="right")
        walk = np.empty((_LENGTH, _DOCUMENTS), dtype=np.uint64)
        here = draws[-1] % np.uint64(_WORDS)
        for position in range(_LENGTH):
            walk[position] = here = successors[here, choices[position]]
        for document in walk.T.tolist():
            text = "".join([words[word] for word in document])[:left]
            left -= len(text)
            if text:
                yield text, True


def _vocabulary() -> list[str]:
    """Words of two or three syllables with what follows them: a blank, or now and then the end of a sentence."""
    syllables = [onset + rhyme for onset in _ONSETS for rhyme in _RHYMES]
    stems = [
        syllables[i % 160] + syllables[i * 7 // 160 % 160] + (syllables[i * 13 % 160] if i % 3 == 0 else "")
        for i in range(_WORDS)
    ]
    return [stem + (".\n" if i % 12 == 0 else ", " if i % 17 == 0 else " ") for i, stem in enumerate(stems)]


def _bits(seed: int, stream: int, count: int) -> npt.NDArray[np.uint64]:
    return np.asarray(np.random.Philox(key=[seed, stream]).random_raw(count), dtype=np.uint64)
