"""Micro-batches in step order for one rank, fetched ahead of the step that needs them.

Global micro-batch m of a step holds rows m·B … m·B + B − 1; rank r of W takes m = r, r + W, …, so two ranks with one
micro-batch each see what one process accumulating two sees. Rows are a pure function of (seed, step, row).
"""

from __future__ import annotations

import queue
import threading
from typing import Any

import torch
from torch import Tensor

from lib.data.batches import Batches
from lib.train.distributed import World

Step = list[tuple[Tensor, Tensor]]
AHEAD = 2  # steps kept ready on a GPU machine


def fetches_ahead(device: torch.device) -> bool:
    """Whether a thread reads ahead; a CPU run has no core to spare, it reads where it needs."""
    return device.type == "cuda"


class Feed:
    """step() gives the next step's micro-batches [(x, y)], each int64 [micro_batch, block_size] on the device."""

    def __init__(
        self, tokens: Any, seed: int, block_size: int, rows: int, micro_batch: int, world: World, first_step: int
    ) -> None:
        self._batches = Batches(tokens, block_size, seed)
        self._micro_batch, self._world, self._next = micro_batch, world, first_step
        self._first_rows = range(world.rank * micro_batch, rows, world.size * micro_batch)
        self._ready: queue.Queue[Step | BaseException] = queue.Queue(AHEAD)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        if fetches_ahead(world.device):
            self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
            self._thread.start()

    def step(self) -> Step:
        """The next step's micro-batches. Raises what reading them raised."""
        if not self._thread:
            fetched = self._fetch(self._next)
            self._next += 1
            return fetched
        found = self._ready.get()
        if isinstance(found, BaseException):
            raise found
        device = self._world.device
        return [(x.to(device, non_blocking=True), y.to(device, non_blocking=True)) for x, y in found]

    def close(self) -> None:
        """Stop fetching."""
        self._closed.set()
        if self._thread:
            self._thread.join(timeout=5)

    def _fetch(self, step: int) -> Step:
        return [self._batches.rows(step, first, self._micro_batch) for first in self._first_rows]

    def _work(self) -> None:
        if self._world.device.type == "cuda":
            torch.cuda.set_device(self._world.device)  # pinning would open a context on the first GPU
        step = self._next
        found: Step | BaseException
        while not self._closed.is_set():
            try:
                found = [(x.pin_memory(), y.pin_memory()) for x, y in self._fetch(step)]
            except BaseException as error:
                found = error
            while not self._closed.is_set():
                try:
                    self._ready.put(found, timeout=0.2)
                    break
                except queue.Full:
                    continue
            step += 1
