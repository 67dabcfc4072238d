"""A program as gpt2/train_ra_mla.py is one: `worker.py RANKS FOLDER JSON` trains, in itself or in RANKS processes.

JSON: the settings of harness.run; "act": [rank, step, what] lets one rank do something when that step is done.
"""

import json
import os
import signal
import sys
from pathlib import Path
from unittest import mock

import torch

from lib.config.errors import exit_with
from lib.train import launch

torch.nn.Embedding.reset_parameters = lambda self: None  # on "meta" it would import torch._dynamo: seconds
ACTS = {
    "kill me": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop me": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "kill launcher": lambda: os.kill(os.getppid(), signal.SIGKILL),
    "terminate launcher": lambda: os.kill(os.getppid(), signal.SIGTERM),
    "interrupt me": lambda: os.kill(os.getpid(), signal.SIGINT),
}


def main() -> int:
    count, folder, given = int(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    if count > 1 and not launch.is_worker():
        return launch.launch(count, sys.argv)
    from lib.config.budget import Budget
    from lib.train import distributed, step
    from tests.train.harness import run

    folder.parent.mkdir(parents=True, exist_ok=True)
    (folder.parent / f"pid.{distributed.rank()}").write_text(str(os.getpid()))
    rank, at, what = given.pop("act", [-1, 0, ""])
    original = step.Stepper.run

    def acting(self, number, *rest, **more):
        original(self, number, *rest, **more)
        if number + 1 == at:
            ACTS[what]()

    with mock.patch.object(step.Stepper, "run", acting if rank == distributed.rank() else original):
        run(folder, budget=Budget(*given.pop("budget", ["iters", 12])), **given)
    return 0


if __name__ == "__main__":
    exit_with(main)
