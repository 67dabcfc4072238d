"""Batches are a pure function of (seed, step, row); evaluation windows are fixed."""

import numpy as np
import pytest
import torch

from lib.config.errors import DataError
from lib.data.batches import Batches, windows

TOKENS = np.random.default_rng(0).integers(0, 50257, 5000).astype(np.uint16)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 12])
def test_any_micro_batch_sees_the_same_rows(size: int) -> None:
    whole = Batches(TOKENS, 32, seed=5).rows(17, 0, 12)
    parts = [Batches(TOKENS, 32, seed=5).rows(17, first, size) for first in range(0, 12, size)]
    for side in (0, 1):
        assert torch.equal(whole[side], torch.cat([part[side] for part in parts]))


def test_order_of_asking_does_not_matter() -> None:
    batches = Batches(TOKENS, 32, seed=5)
    later_first = [batches.rows(step, 0, 4)[0] for step in (9, 0, 3)]
    for step, rows in zip((9, 0, 3), later_first, strict=True):
        assert torch.equal(Batches(TOKENS, 32, seed=5).rows(step, 0, 4)[0], rows)


def test_seeds_steps_and_rows_differ() -> None:
    many = np.arange(10**6, dtype=np.uint32)
    seen = [
        Batches(many, 32, seed).rows(step, row, 1)[0]
        for seed in (0, 1)
        for step in (0, 1, 2**40)
        for row in (0, 1, 10**6)
    ]
    assert len({tuple(x[0].tolist()) for x in seen}) == len(seen)


def test_targets_are_the_inputs_one_token_later() -> None:
    x, y = Batches(TOKENS, 32, seed=1).rows(3, 0, 5)
    assert x.shape == y.shape == (5, 32)
    assert x.dtype == y.dtype == torch.int64
    assert x.is_contiguous()
    assert y.is_contiguous()
    assert torch.equal(x[:, 1:], y[:, :-1])
    stream = TOKENS.tolist()
    for row in range(5):
        window = [*x[row].tolist(), int(y[row, -1])]
        assert any(stream[s : s + 33] == window for s in range(len(stream)))


def test_every_start_is_drawn_and_none_leaves_the_split() -> None:
    tokens = np.arange(20, dtype=np.uint32)
    x, y = Batches(tokens, 8, seed=0).rows(0, 0, 1000)
    assert set(x[:, 0].tolist()) == set(range(12))
    assert int(y.max()) == 19


def test_rows_are_frozen_for_all_time() -> None:
    x, _ = Batches(np.arange(1_000_000, dtype=np.uint32), 4, seed=1337).rows(7, 0, 4)
    assert x[:, 0].tolist() == [399346, 427746, 589643, 352958]


def test_a_split_of_exactly_one_window_is_enough() -> None:
    x, y = Batches(TOKENS[:33], 32, seed=0).rows(0, 0, 2)
    assert torch.equal(x[0], x[1])
    assert torch.equal(y[0], y[1])
    assert list(windows(TOKENS[:33], 32, 0)) == [0]


@pytest.mark.parametrize("length", [0, 1, 31, 32])
def test_a_short_split_is_named_with_its_length_and_the_way_out(length: int) -> None:
    for use in (lambda t: Batches(t, 32, 0), lambda t: windows(t, 32, 0), lambda t: windows(t, 32, 5)):
        with pytest.raises(DataError, match=rf"{length} tokens.*33.*GPT2_BLOCK_SIZE") as found:
            use(TOKENS[:length])
        assert found.value.exit_code == 3
        assert "\n" not in str(found.value)


@pytest.mark.parametrize("length", [33, 64, 65, 66, 1000])
def test_windows_tile_the_split_without_overlap(length: int) -> None:
    starts = list(windows(TOKENS[:length], 32, 0))
    assert starts == [s for s in range(0, length, 32) if s + 33 <= length]


@pytest.mark.parametrize("count", [1, 2, 3, 20, 31, 155])
def test_windows_are_evenly_spread_members_of_the_tiling(count: int) -> None:
    every = list(windows(TOKENS, 32, 0))
    chosen = list(windows(TOKENS, 32, count))
    assert len(chosen) == count
    assert set(chosen) <= set(every)
    gaps = np.diff(chosen)
    assert count == 1 or gaps.max() - gaps.min() <= 32


def test_asking_for_more_windows_than_there_are_gives_all() -> None:
    assert list(windows(TOKENS, 32, 10**6)) == list(windows(TOKENS, 32, 0))
