"""Separate streams of random numbers from one seed, so that what arms share stays equal whatever else they draw."""

import hashlib


def stream_seed(seed: int, stream: str) -> int:
    """The seed of a named stream ("init", "mechanism", ...): 63 bits, unrelated between names and between seeds."""
    return int.from_bytes(hashlib.sha256(f"{stream} {seed}".encode()).digest()[:8], "little") >> 1
