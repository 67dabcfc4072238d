"""The machine under a run: threads, precision, peak rates, memory, compilers."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
import resource
import shutil
import sys
import sysconfig
from pathlib import Path

import torch

# Dense bf16 tensor-core peaks with fp32 accumulation, FLOP/s, from the makers' data sheets. The first name that occurs
# in the device's name counts, so special cases stand before general ones.
BF16_PEAK = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H200", 989e12),
    ("H100", 989e12),
    ("H800", 989e12),
    ("GB200", 2500e12),
    ("B200", 2250e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("A30", 165e12),
    ("A40", 150e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("A6000", 155e12),
    ("RTX 5090", 209e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def set_threads(threads: int, local_processes: int) -> int:
    """Fix the number of CPU threads of this process (`threads`, 0: cores / processes); the number taken."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = threads or max(1, cores // local_processes)
    torch.set_num_threads(wanted)
    keep_freed_memory()
    return wanted


def keep_freed_memory() -> None:
    """Have glibc keep what is freed instead of handing it back to the kernel, which clears every page anew.

    A CPU step allocates the same tensors again and again: 48.8 -> 36.6 ms for 4 layers of 128 on two cores.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest value it takes
        mallopt(M_TRIM_THRESHOLD, 1 << 30)


def is_cpu(device: str) -> bool:
    """Whether a run on `device` (auto, cpu, cuda) computes on the CPU here."""
    return device == "cpu" or not torch.cuda.is_available()


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
    return peak_of(name(device)) if device.type == "cuda" and precision == "bf16" else None


def peak_of(called: str) -> float | None:
    """Peak bf16 FLOP/s of the GPU that is called so, None for one that the table does not have."""
    return next((peak for part, peak in BF16_PEAK if re.search(rf"{part}(?![0-9])", called)), None)


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Bytes at their highest so far: allocated on a GPU, else resident in this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # Not ru_maxrss: that one begins with the memory of whoever started this process.
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_memory(device: torch.device, local_processes: int) -> int:
    """Bytes that this process may take: free on its GPU, or its share of what the host (and its cgroup) has left."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return max(0, min(_host_memory(), _cgroup_memory()) // local_processes)


def _host_memory() -> int:
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    return 4 << 30


def _cgroup_memory(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """What this process's cgroup and those above it leave (version 2); file caches count as free."""
    left = sys.maxsize
    with contextlib.suppress(OSError):
        path = next((t.removeprefix("0::/") for t in own.read_text().splitlines() if t.startswith("0::/")), "")
        for folder in (root / path, *(root / path).parents):
            with contextlib.suppress(OSError, ValueError):
                limit, used = (int((folder / f"memory.{what}").read_text()) for what in ("max", "current"))
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                left = min(left, limit - used + int(stat.get("inactive_file", 0)))
            if folder == root:
                break
    return left


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
