"""make: train what is not done, then print the table."""

import contextlib
import os
from collections.abc import Sequence

from lib.config.errors import ConfigError
from lib.matrix import runner
from lib.matrix.plan import Cell
from lib.run import directory
from lib.run.lock import Lock
from lib.run.process import end_with_make
from scripts.report import summarise
from scripts.workspace import ROOT, Workspace, exit_with


def main() -> int:
    end_with_make()
    space = Workspace()
    return train(space, space.cells)


def train(space: Workspace, cells: Sequence[Cell], retire: Sequence[Cell] = ()) -> int:
    """Train those of `cells` that are not done, those to `retire` anew, and print the table of the whole matrix."""
    parallel = space.matrix.parallel_runs
    _ = space.reference
    try:
        space.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"GPT2_OUTPUT {space.output}: cannot be made ({error.strerror})") from None
    devices = runner.visible_devices() if parallel > 1 else []
    share = 0 if devices or parallel == 1 else max(1, len(os.sched_getaffinity(0)) // parallel)
    threads = share if share and not space.specs[0].values["GPT2_THREADS"] else 0
    with Lock(space.output, "make"):
        for cell in retire:
            print(f"{cell.spec.name}: set aside as {directory.set_aside(cell.place, retire=True).name}")
        code = runner.Runner(ROOT, cells, parallel, devices, threads, say).run()
        print()
        summarise(space)
    print(f"\nEach run: {space.shown(space.output)}/<run>/ (config.json, metrics.jsonl, training.log, model.pt).")
    if code:
        print(
            f"Not everything is done: make status{space.where} says what, make{space.where} continues where it stopped."
        )
    else:
        more = f' make{space.where} SEEDS="0 1 2" for pairs that can carry a claim;'
        more = "" if len(space.matrix.seed_list) > 2 else more
        print(f"Next: docs/quickstart.md;{more} make show{space.where} for settings.")
    return code


def say(line: str) -> None:
    """Print a line at once; a terminal that has gone away stops nothing."""
    with contextlib.suppress(OSError, ValueError):
        print(line, flush=True)


if __name__ == "__main__":
    exit_with(main)
