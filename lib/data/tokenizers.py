"""Text to tokens: GPT-2's byte-pair encoding, plain bytes, or a byte-pair encoding trained on the corpus.

All three are lossless on UTF-8 and reserve one token, the separator, for the boundary between two documents; text that
happens to read `<|endoftext|>` inside a line is encoded as the characters it is.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lib.config.errors import DataError
from lib.data.config import BYTES_VOCAB, GPT2_VOCAB
from lib.data.deadline import in_short, within
from lib.data.files import SEPARATOR

# sha256 of GPT-2's ranks as lines `base64(token) rank`; tiktoken's own check of its two download files amounts to this.
GPT2_RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
DOWNLOAD_SECONDS = 15.0
MIN_FREQUENCY = 2  # a pair seen once is no regularity

Tokens = npt.NDArray[Any]


class Tokenizer(Protocol):
    """`fingerprint` (hex sha256) decides the encoding; `json` describes it where no package does."""

    name: str
    vocab_size: int
    separator: int
    fingerprint: str

    @property
    def json(self) -> str | None: ...

    def encode(self, text: str) -> Tokens:
        """Tokens of `text`, integers [n]; callable from several threads at once."""
        ...

    def token_bytes(self) -> Tokens:
        """UTF-8 bytes of each token, int64 [vocab_size]; 0 for the separator."""
        ...


class Bytes:
    """256 bytes and the separator."""

    name, vocab_size, separator, json = "bytes", BYTES_VOCAB, BYTES_VOCAB - 1, None
    fingerprint = hashlib.sha256(b"bytes, separator 256").hexdigest()

    def encode(self, text: str) -> Tokens:
        return np.frombuffer(text.encode(), dtype=np.uint8)

    def token_bytes(self) -> Tokens:
        return np.array([1] * 256 + [0], dtype=np.int64)


class GPT2Tokenizer:
    """GPT-2's ranks with tiktoken; the file of ranks at `path`, or tiktoken's own copy, fetched once, when None."""

    name, vocab_size, separator, json = "gpt2", GPT2_VOCAB, GPT2_VOCAB - 1, None

    def __init__(self, path: Path | None) -> None:
        """Raises DataError when the ranks are missing or are not GPT-2's."""
        import tiktoken
        from tiktoken_ext.openai_public import r50k_pat_str

        self._ranks = _read_ranks(path) if path else _fetched_ranks()
        self.fingerprint = _canonical_sha256(self._ranks)
        if self.fingerprint != GPT2_RANKS_SHA256:
            raise DataError(
                f"{path}: {len(self._ranks):,} ranks which are not GPT-2's {GPT2_VOCAB - 1:,}; give another file with "
                "GPT2_BPE_RANKS, or train a vocabulary with GPT2_TOKENIZER=trained"
            )
        self.encoding = tiktoken.Encoding(
            name="gpt2",
            pat_str=r50k_pat_str,
            mergeable_ranks=self._ranks,
            special_tokens={SEPARATOR: self.separator},
            explicit_n_vocab=GPT2_VOCAB,
        )

    def encode(self, text: str) -> Tokens:
        return self.encoding.encode_to_numpy(text, disallowed_special=())

    def token_bytes(self) -> Tokens:
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, rank in self._ranks.items():
            lengths[rank] = len(token)
        return lengths


def _read_ranks(path: Path) -> dict[bytes, int]:
    # tiktoken's reader keeps a copy of every file by its path and would not see a changed one.
    try:
        pairs = [line.split() for line in path.read_bytes().splitlines() if line.strip()]
        return {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); GPT2_BPE_RANKS names a file of GPT-2's ranks in tiktoken's "
            "format, or is empty to let tiktoken fetch them"
        ) from None
    except (ValueError, binascii.Error):
        raise DataError(f"{path}: not in tiktoken's format, lines of `base64(token) rank` (GPT2_BPE_RANKS)") from None


def _fetched_ranks() -> dict[bytes, int]:
    import tiktoken

    try:
        return dict(within(DOWNLOAD_SECONDS, lambda: tiktoken.get_encoding("gpt2"))._mergeable_ranks)
    except Exception as error:
        raise DataError(
            f"GPT-2's ranks cannot be fetched ({in_short(error)}); give their file with GPT2_BPE_RANKS=gpt2.tiktoken, "
            "or set GPT2_TOKENIZER=bytes or trained"
        ) from None


def _canonical_sha256(ranks: dict[bytes, int]) -> str:
    lines = (base64.b64encode(token) + b" %d\n" % rank for token, rank in sorted(ranks.items(), key=lambda e: e[1]))
    return hashlib.sha256(b"".join(lines)).hexdigest()


class Trained:
    """A byte-level BPE (GPT-2's pre-tokenization) as the `tokenizers` library trains and stores it."""

    name = "trained"

    def __init__(self, json: str, vocab_size: int) -> None:
        from tokenizers import Tokenizer as Library

        self._library: Any = Library.from_str(json)
        self._library.encode_special_tokens = True  # the separator comes from boundaries, never from the text
        self.json = json
        self.vocab_size = vocab_size
        self.separator = int(self._library.token_to_id(SEPARATOR) or 0)
        self.fingerprint = hashlib.sha256(json.encode()).hexdigest()

    @property
    def used(self) -> int:
        """Tokens that the training text yielded; the ids from here to vocab_size never occur."""
        return int(self._library.get_vocab_size())

    def encode(self, text: str) -> Tokens:
        # Unlike encode(), the batch call lets other threads run.
        return np.array(self._library.encode_batch_fast([text], add_special_tokens=False)[0].ids, dtype=np.uint32)

    def token_bytes(self) -> Tokens:
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, number in self._library.get_vocab(with_added_tokens=False).items():
            lengths[number] = len(token)  # the byte-level alphabet writes one character per byte
        return lengths


def train(texts: Iterable[str], vocab_size: int) -> Trained:
    """A vocabulary of `vocab_size` with the 256 bytes and the separator; the same texts give the same one."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=MIN_FREQUENCY,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    library.train_from_iterator(texts, trainer)
    library.add_special_tokens([SEPARATOR])
    return Trained(library.to_str(pretty=False), vocab_size)
