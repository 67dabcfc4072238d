"""The machine under a run: threads, precision, peak rates, memory, and the micro-batch that fits."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import resource
import shutil
import sys
import sysconfig
from pathlib import Path

import torch

from lib.config.errors import ConfigError

# Dense bf16 tensor-core peaks with fp32 accumulation, FLOP/s, from the makers' data sheets. The first name that occurs
# in the device's name counts, so special cases stand before general ones.
BF16_PEAK = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H200", 989e12),
    ("H100", 989e12),
    ("GH200", 989e12),
    ("B200", 2250e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("A40", 150e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("A6000", 155e12),
    ("RTX 5090", 209e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
)

# A CPU is fastest while a micro-batch stays in its caches; a GPU wants at least 8k tokens and gains little past 64k.
CPU_TOKENS = 8192
GPU_TOKENS = 65536
MEMORY_SHARE = 0.85  # the rest is for the allocator's fragments, the loss and the libraries
BYTES_PER_PARAMETER = 16  # fp32: weight, gradient, two moments


def set_threads(threads: int, local_processes: int) -> int:
    """Pin the CPU threads of this process (`threads`, 0: cores / processes); the number taken."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = threads or max(1, cores // local_processes)
    torch.set_num_threads(wanted)
    return wanted


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """bf16 autocast, or nothing at all for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def name(device: torch.device) -> str:
    """The device in words, for records."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return "CPU: " + line.partition(":")[2].strip()
    return "CPU"


def names() -> list[str]:
    """The GPUs that are visible, in words; the CPU where there are none."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.cuda.get_device_name(i) for i in range(count)] or [name(torch.device("cpu"))]


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s of one device in bf16, or None where the table has no honest number (CPUs, fp32, unknown GPUs)."""
    if device.type != "cuda" or precision != "bf16":
        return None
    called = torch.cuda.get_device_name(device)
    return next((peak for part, peak in BF16_PEAK if part in called), None)


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Bytes at their highest so far: allocated on a GPU, else resident in this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory(device: torch.device, local_processes: int) -> int:
    """Bytes that this process may take: free on its GPU, or its share of what the host (and its cgroup) has left."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    left = 4 << 30
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        left = int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        left = min(left, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return max(0, left // local_processes)


def micro_batch(
    wanted: int, rows_per_step: int, block_size: int, world_size: int, memory_per_row: float, parameters: int,
    device: torch.device, local_processes: int,
) -> int:  # fmt: skip
    """Sequences per forward pass: `wanted`, or derived from memory (0). Raises ConfigError when it does not divide."""
    share, rest = divmod(rows_per_step, world_size)
    if rest or not share:
        raise ConfigError(
            f"{rows_per_step} sequences per step (GPT2_TOKENS_PER_STEP / context length) do not divide among "
            f"{world_size} processes; change GPT2_TOKENS_PER_STEP or GPT2_NGPUS"
        )
    if wanted:
        if share % wanted:
            allowed = " ".join(str(d) for d in divisors(share))
            raise ConfigError(
                f"GPT2_MICRO_BATCH is {wanted}, no divisor of the {share} sequences per step and process; "
                f"one of {allowed}, or 0 to derive it"
            )
        return wanted
    available = free_memory(device, local_processes) * MEMORY_SHARE - parameters * BYTES_PER_PARAMETER
    cap = max(1, (GPU_TOKENS if device.type == "cuda" else CPU_TOKENS) // block_size)
    return derive_micro_batch(rows_per_step, world_size, memory_per_row, available, cap)


def derive_micro_batch(
    rows_per_step: int, world_size: int, memory_per_row_bytes: float, available_bytes: float, cap: int
) -> int:
    """The largest divisor of a rank's rows that fits `available_bytes` and is at most `cap` rows; at least 1."""
    fits = available_bytes / memory_per_row_bytes if memory_per_row_bytes > 0 else float("inf")
    return max([d for d in divisors(rows_per_step // world_size) if d <= min(fits, cap)], default=1)


def divisors(n: int) -> list[int]:
    """All divisors of n in increasing order."""
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return small + [n // d for d in reversed(small) if d * d != n]


def missing_compiler(device: torch.device) -> str:
    """What torch.compile lacks on this machine, in words; empty when it has all it needs."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "no triton here"
        if not (os.environ.get("CC") or any(shutil.which(c) for c in ("cc", "gcc", "clang"))):
            return "no C compiler here (triton needs one)"
        return ""
    if not (os.environ.get("CXX") or any(shutil.which(c) for c in ("c++", "g++", "clang++"))):
        return "no C++ compiler here"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "no Python headers here (Python.h)"
    return ""
