"""One optimizer step: accumulate micro-batches, clip, guard against non-finite numbers, update.

Nothing here waits for the device. Dropout is a pure function of (seed, step, global micro-batch), so no generator state
needs saving and any number of ranks draws the same masks. Once a loss or gradient is not finite, that update and all
after it are switched off on the device, and the loop learns of it the next time it looks.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lib.optimizers.build import Optimizers
from lib.train.device import autocast
from lib.train.distributed import World


class Stepper:
    """Runs steps of `accumulation` micro-batches per rank on `forward` (the model, compiled and wrapped)."""

    def __init__(
        self,
        forward: nn.Module,
        optimizers: Optimizers,
        world: World,
        accumulation: int,
        precision: str,
        grad_clip: float,
        seed: int,
    ) -> None:
        self.forward, self.optimizers, self.world = forward, optimizers, world
        self.accumulation, self.precision, self.grad_clip, self.seed = accumulation, precision, grad_clip, seed
        self.losses = torch.zeros(accumulation, device=world.device)
        self.grad_norm = torch.zeros((), device=world.device)
        self.forward_ms = ForwardTimer(world.device)
        self._halted = torch.zeros(1, device=world.device)
        self._first_bad = torch.full((2,), -1.0, dtype=torch.float64, device=world.device)  # step, was it the loss
        self._parameters = list(optimizers.names)

    def run(self, step: int, batches: Sequence[tuple[Tensor, Tensor]], factor: float, timed: bool = False) -> None:
        """Step `step` on this rank's micro-batches [(x, y)], each [rows, T]; `factor` scales the peak rates."""
        self.optimizers.set_factor(factor)
        self._backward(step, batches, timed)
        self.grad_norm = self._clip()
        self._guard(step)
        self.optimizers.step(skip=self._halted)
        self.optimizers.zero_grad()

    def rehearse(self, x: Tensor, y: Tensor) -> None:
        """A forward and backward pass on this rank alone, for its costs; the caller throws the gradients away."""
        self._backward(-1, [(x, y)], timed=False, exchange=False)

    def trouble(self) -> tuple[int, str] | None:
        """The first step whose loss or gradients were not finite, and which of them; waits for the device."""
        step, in_loss = self._first_bad.tolist()
        return (int(step), "loss" if in_loss else "gradient norm") if step >= 0 else None

    def mean_loss(self) -> float:
        """Mean loss of the last step over all micro-batches of all ranks, summed in their global order (collective)."""
        table = torch.stack(self.world.gather(self.losses))  # [ranks, accumulation]
        return float(table.T.flatten().double().mean())

    def _guard(self, step: int) -> None:
        """Halt all updates from the first loss or gradient on that is not finite, on whichever rank."""
        bad_loss = self.world.any_((~torch.isfinite(self.losses).all()).float().reshape(1))
        bad = torch.maximum(bad_loss, (~torch.isfinite(self.grad_norm)).float())
        found = torch.cat((torch.full_like(bad_loss, step, dtype=torch.float64), bad_loss.double()))
        self._first_bad = torch.where((bad > 0) & (self._halted == 0), found, self._first_bad)
        self._halted = torch.maximum(self._halted, bad)

    def _backward(
        self, step: int, batches: Sequence[tuple[Tensor, Tensor]], timed: bool, exchange: bool = True
    ) -> None:
        scale = 1.0 / self.accumulation  # over ranks the average is taken by World.wrap
        for index, (x, y) in enumerate(batches):
            seed_dropout(self.seed, step, index * self.world.size + self.world.rank, self.world.device)
            talks = self.world.size == 1 or (exchange and index == len(batches) - 1)
            with contextlib.nullcontext() if talks else self.forward.no_sync():  # type: ignore[operator]
                with self.forward_ms.measure(timed), autocast(self.world.device, self.precision):
                    loss = self.forward(x, y)
                (loss * scale).backward()
            self.losses[index].copy_(loss.detach())

    def _clip(self) -> Tensor:
        """Clip the gradients' total norm; the norm before."""
        grads = [p.grad for p in self._parameters if p.grad is not None]
        norm = total_norm(grads)
        if self.grad_clip > 0:
            torch._foreach_mul_(grads, (self.grad_clip / (norm + 1e-6)).clamp(max=1.0))
        return norm


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all `tensors` together, a float32 scalar on their device.

    Summed in float64, so that parameters whose gradient is zero (a mechanism at s = 0) do not change how the others'
    norms are rounded: an arm that is the baseline gets the baseline's clipping.
    """
    norms = torch.stack(torch._foreach_norm(list(tensors)))
    return norms.double().square().sum().sqrt().float()


class ForwardTimer:
    """Milliseconds in forward passes, by events on a GPU and by the host's clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0

    @contextlib.contextmanager
    def _gpu(self) -> Iterator[None]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        yield
        end.record()
        self._events.append((start, end))

    @contextlib.contextmanager
    def _cpu(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - began

    def measure(self, wanted: bool) -> contextlib.AbstractContextManager[None]:
        """Time what happens inside, if `wanted`."""
        if not wanted:
            return contextlib.nullcontext()
        return self._gpu() if self._device.type == "cuda" else self._cpu()

    def take(self) -> float:
        """Milliseconds since the last call; the device must have been waited for."""
        total = 1000 * self._seconds + sum(start.elapsed_time(end) for start, end in self._events)
        self._events, self._seconds = [], 0.0
        return float(total)


def seed_dropout(seed: int, step: int, micro_batch: int, device: torch.device) -> None:
    """Seed the device's generator for one micro-batch.

    The generator alone: torch.manual_seed also queues a call for every absent kind of accelerator (155 µs a call).
    """
    digest = hashlib.blake2b(struct.pack("<qqq", seed, step, micro_batch), digest_size=8, person=b"dropout").digest()
    value = int.from_bytes(digest, "little") >> 1
    if device.type == "cuda":
        torch.cuda.manual_seed(value)
    else:
        torch.default_generator.manual_seed(value)
