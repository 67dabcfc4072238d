"""One process or many: the only place that reads RANK and its relatives.

Gradients are averaged by DistributedDataParallel: two ranks with a micro-batch each add the same numbers as one process
accumulating two (halving is exact). Decisions (stop, time) go through a gloo group and never wait for a GPU.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lib.config.errors import ConfigError, RunError
from lib.run.process import die_with_parent

T = TypeVar("T")
LAUNCHER = "RANKS_LAUNCHER"  # lib/train/launch.py puts its pid here for the ranks it starts
# Process groups, kept to the end: were DistributedDataParallel's reducer the last to let go of one, it would join the
# group's threads while holding the interpreter, which a thread may need to let go of a tensor: a deadlock at times.
_kept: list[Any] = []


def is_launched() -> bool:
    """Whether torchrun (or another launcher that sets RANK and WORLD_SIZE) started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    """This process's number among all of the run; 0 when alone."""
    return int(os.environ["RANK"]) if is_launched() else 0


@dataclass
class World:
    """The processes of this run, as one of them sees it."""

    rank: int
    size: int
    local_size: int
    device: torch.device
    control: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model` with gradients averaged over the ranks in each backward pass; itself when alone."""
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        devices = [self.device.index] if self.device.type == "cuda" else None
        wrapped = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
        wrapped.broadcast_buffers = False  # equal on all ranks anyway; as an argument its name depends on torch's age
        return wrapped

    def agree(self, *values: float) -> list[float]:
        """Element-wise maximum of `values` over the ranks; also where they wait for each other."""
        if self.size == 1:
            return list(values)
        table = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(table, op=dist.ReduceOp.MAX, group=self.control)
        return [float(v) for v in table]

    def any_(self, flag: Tensor) -> Tensor:
        """Maximum of a device tensor over the ranks, in place, without waiting for the device."""
        if self.size > 1:
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return flag

    def from_main(self, value: T) -> T:
        """Rank 0's `value`, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's `tensor` (equal shapes), on the CPU, in rank order."""
        tensor = tensor.detach().cpu()
        if self.size == 1:
            return [tensor]
        out = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(out, tensor, group=self.control)
        return out

    def leave(self, at_once: bool = False) -> None:
        """End the process group; `at_once` after a failure, when the others may no longer answer."""
        if self.size > 1 and dist.is_initialized() and not at_once:
            dist.destroy_process_group()


def join(device: str, timeout: int) -> World:
    """Join the run on `device` (auto, cpu, cuda); a collective silent for `timeout` seconds ends the run.

    Raises ConfigError when CUDA is demanded and absent, RunError when the other processes do not come.
    """
    local = int(os.environ.get("LOCAL_RANK", 0)) if is_launched() else 0
    if is_launched():
        _end_with_launcher()
    chosen = _device(device, local)
    size = int(os.environ["WORLD_SIZE"]) if is_launched() else 1
    if size == 1:
        return World(0, 1, 1, chosen)
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    wait = timedelta(seconds=timeout)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    try:
        if not dist.is_initialized():
            dist.init_process_group(backend, timeout=wait, device_id=chosen if backend == "nccl" else None)
        _kept.append(dist.group.WORLD)
        control = dist.new_group(backend="gloo", timeout=wait) if backend == "nccl" else None
    except dist.DistError as error:
        raise RunError(f"rank {rank()} of {size} cannot reach the others: {_first_line(error)}") from error
    return World(rank(), size, local_size, chosen, control)


def _device(device: str, local: int) -> torch.device:
    available = device != "cpu" and torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ConfigError("GPT2_DEVICE is cuda, but no CUDA GPU is visible here; use auto or cpu")
    if not available:
        return torch.device("cpu")
    if local >= torch.cuda.device_count():
        raise ConfigError(f"GPT2_NGPUS wants process {local}, but {torch.cuda.device_count()} GPU(s) are visible here")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _end_with_launcher() -> None:
    """No orphan holds a GPU: a rank is killed with its launcher, even one that died before this rank came so far."""
    die_with_parent()
    launcher = os.environ.get(LAUNCHER)
    if launcher and launcher != str(os.getppid()):
        os._exit(1)


@contextlib.contextmanager
def losses_of_ranks(world: World) -> Iterator[None]:
    """Turn a collective's complaint that a rank is gone or silent into a RunError of one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        said = _first_line(error)
        lost = isinstance(error, dist.DistError) or any(
            word in said.lower() for word in ("connection closed", "gloo", "nccl", "timed out", "timeout", "peer")
        )
        if world.size == 1 or not lost:
            raise
        raise RunError(
            f"rank {world.rank} lost another process of this run ({said}); "
            "start again with the same command: it continues from the newest checkpoint"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
