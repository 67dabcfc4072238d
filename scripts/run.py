"""make: train what is not done, then print the table."""

import os

from lib.config.errors import RunError
from lib.matrix import runner
from lib.run.lock import Lock
from lib.run.process import end_with_make
from scripts.report import summarise
from scripts.workspace import ROOT, Workspace, exit_with


def main() -> int:
    end_with_make()
    space = Workspace()
    cells, parallel = space.cells, space.matrix.parallel_runs
    _ = space.reference
    try:
        space.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {space.output}: {error.strerror}") from None
    devices = runner.visible_devices() if parallel > 1 else []
    share = 0 if devices or parallel == 1 else max(1, len(os.sched_getaffinity(0)) // parallel)
    threads = share if share and not space.specs[0].values["GPT2_THREADS"] else 0
    with Lock(space.output, "make"):
        code = runner.Runner(ROOT, cells, parallel, devices, threads, lambda said: print(said, flush=True)).run()
        print()
        summarise(space)
    print(f"\nEach run: {space.shown(space.output)}/<run>/ (config.json, metrics.jsonl, training.log, model.pt).")
    if code:
        print("Not everything is done: make status says what, and make continues where it stopped.")
    else:
        more = "" if len(space.matrix.seed_list) > 2 else ' make SEEDS="0 1 2" for pairs that can carry a claim;'
        print(f"Next: docs/quickstart.md;{more} make show for settings.")
    return code


if __name__ == "__main__":
    exit_with(main)
