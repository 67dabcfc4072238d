"""Tokens per second of the data room, from a text file to shards on disk, against tiktoken's own batch call in memory.

    python scripts/bench_tokenise.py ../shared/data/peps.txt.gz ../shared/data/gpt2.tiktoken [repeats]

Both use all cores of this process and a loaded vocabulary; they take turns, and medians are printed as JSON.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.config.errors import ConfigError, exit_with
from lib.data import files
from lib.data.tokenise import Meter, write_tokens
from lib.data.tokenizers import GPT2Tokenizer


def main() -> None:
    if len(sys.argv) not in (3, 4):
        raise ConfigError("usage: bench_tokenise.py TEXT RANKS [REPEATS]")
    text, ranks, repeats = Path(sys.argv[1]), Path(sys.argv[2]), int((sys.argv[3:] or ["7"])[0])
    cores = len(os.sched_getaffinity(0))
    tokenizer = GPT2Tokenizer(ranks)
    documents = _documents(text)

    def theirs() -> int:
        return sum(map(len, tokenizer.encoding.encode_ordinary_batch(documents, num_threads=cores)))

    def ours() -> int:
        with tempfile.TemporaryFile() as file:
            pieces = Meter(None).read(files.read_text(text))
            return write_tokens(pieces, tokenizer, "<u2", cores, file, lambda count: None).tokens

    rates = _take_turns({"tiktoken": theirs, "ours": ours}, repeats)
    result = {
        "text": text.name,
        "bytes": sum(len(document.encode()) for document in documents),
        "cores": cores,
        "repeats": repeats,
        **{f"{name}_tokens_per_second": round(rate) for name, rate in rates.items()},
        "ratio": round(rates["ours"] / rates["tiktoken"], 3),
    }
    print(json.dumps(result, indent=1))


def _documents(text: Path) -> list[str]:
    found, parts = [], []
    for piece, ends in files.read_text(text):
        parts.append(piece)
        if ends:
            found.append("".join(parts))
            parts = []
    return found


def _take_turns(calls: dict[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """Median tokens per second of each call, after one unmeasured turn."""
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            tokens = call()
            if turn:
                rates[name].append(tokens / (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in rates.items()}


if __name__ == "__main__":
    exit_with(main)
