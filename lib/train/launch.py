"""How many processes a run gets, and starting them: torchrun's own launcher, called from Python.

Called rather than executed, so that a rank's exit code (2 configuration, 3 data, 75 interrupted, …) is the program's.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import uuid
from collections.abc import Sequence


def processes(device: str, wanted: int) -> tuple[int, str]:
    """How many processes to start for `device` (auto, cpu, cuda) when `wanted` were asked for (0: all), and a note.

    Fewer GPUs than asked for are used as they are: tokens per step do not depend on them. Raises ConfigError when CUDA
    is demanded and absent.
    """
    import torch

    from lib.config.errors import ConfigError

    if device == "cpu":
        return wanted or 1, ""
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not visible:
        if device == "cuda":
            raise ConfigError("GPT2_DEVICE is cuda, but no CUDA GPU is visible here; use auto or cpu")
        return 1, f"no GPU is visible: one process on the CPU instead of {wanted} GPUs" if wanted > 1 else ""
    if wanted > visible:
        return visible, f"{visible} GPU(s) instead of {wanted}: same tokens per step, more micro-batches"
    return wanted or visible, ""


def is_worker() -> bool:
    """Whether this process was started by torchrun."""
    from lib.train.distributed import is_launched

    return is_launched()


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run this program again in `count` processes; the first failing rank's exit code, or 0.

    A signal to this process reaches the ranks, which save and leave.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Its reports of a failed rank would bury the rank's own line.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # Stale addresses of an earlier attempt must not be met again.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with tempfile.TemporaryDirectory(prefix="ranks-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            max_restarts=0,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)("-u", *arguments)
        except ChildFailedError as error:
            code = error.failures[min(error.failures)].exitcode
            return code if code > 0 else 1
        except SignalException as stop:
            return 130 if stop.sigval == 2 else 75
    return 0
