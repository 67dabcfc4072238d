"""Micro-batches: the rows of a step in order, dealt to ranks, the same whoever reads them and however far ahead."""

import threading

import pytest
import torch

from lib.data.batches import Batches
from lib.train import feed
from lib.train.distributed import World
from lib.train.feed import Feed
from tests.train.harness import BLOCK, corpus

CPU = torch.device("cpu")


def made(rank=0, size=1, micro_batch=2, first_step=0, rows=8):
    return Feed(corpus().train, 5, BLOCK, rows, micro_batch, World(rank, size, size, CPU), first_step)


def same(a, b):
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True))


@pytest.mark.parametrize("micro_batch", [1, 2, 4, 8])
def test_the_micro_batches_of_a_step_are_its_rows_in_order(micro_batch):
    x, y = Batches(corpus().train, BLOCK, 5).rows(3, 0, 8)
    step = made(micro_batch=micro_batch, first_step=3).step()
    assert torch.equal(torch.cat([part for part, _ in step]), x)
    assert torch.equal(torch.cat([part for _, part in step]), y)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_take_turns(size):
    """Global micro-batch m goes to rank m modulo the number of ranks."""
    alone = made().step()
    dealt = [made(rank, size).step() for rank in range(size)]
    assert same([dealt[m % size][m // size] for m in range(4)], alone)


def test_a_feed_that_begins_later_gives_what_one_that_has_come_so_far_gives():
    early, late = made(), made(first_step=2)
    early.step(), early.step()
    assert same(early.step(), late.step())
    assert same(early.step(), late.step())


@pytest.fixture
def ahead(monkeypatch):
    """As on a GPU machine, without the GPU."""
    monkeypatch.setattr(feed, "fetches_ahead", lambda device: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)


def test_reading_ahead_changes_nothing_and_ends_with_the_feed(ahead, monkeypatch):
    reading = made()
    steps = [reading.step() for _ in range(5)]
    reading.close()
    assert all(thread.name != "batches" for thread in threading.enumerate())
    monkeypatch.undo()
    plain = made()
    assert all(same(step, plain.step()) for step in steps)


def test_what_reading_ahead_raises_is_raised_where_the_step_needs_it(ahead, monkeypatch):
    original = Batches.rows

    def rows(self, step, first, count):
        if step == 2:
            raise OSError("the shard is gone")
        return original(self, step, first, count)

    monkeypatch.setattr(Batches, "rows", rows)
    reading = made()
    reading.step(), reading.step()
    with pytest.raises(OSError, match="the shard is gone"):
        reading.step()
    reading.close()


def test_a_feed_that_nobody_reads_from_can_be_closed(ahead):
    made().close()
    assert all(thread.name != "batches" for thread in threading.enumerate())
