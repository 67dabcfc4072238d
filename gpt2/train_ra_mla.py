#!/usr/bin/env python
"""Train one arm: resolve its settings, build GPT-2, patch it, train it, leave a run directory.

    python gpt2/train_ra_mla.py --ra-mla-ablation-step V1 --dry-run
    python gpt2/train_ra_mla.py --dataset textfile --data-path book.txt --tokenizer bytes --max-iters 200

Works from any directory, with or without a .config; --help lists every setting. Where a run has several processes it
starts itself once for each; torchrun may do that in its place. Exit codes: 0 done, 1 failed, 2 configuration, 3 data,
75 interrupted, 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

if TYPE_CHECKING:
    from lib.train.config import TrainConfig

from lib.config import flags, sources  # noqa: E402
from lib.config.errors import ConfigError, exit_with, need  # noqa: E402
from lib.config.fields import fill  # noqa: E402
from lib.config.resolve import Resolver, RunSpec  # noqa: E402
from lib.matrix.config import MatrixConfig  # noqa: E402
from lib.run import directory, provenance  # noqa: E402
from lib.run.process import end_with_runner  # noqa: E402


def main() -> int:
    """The program. Raises UserError for what a person can mend."""
    end_with_runner()
    spec, options = read_command_line(sys.argv[1:])
    need("torch", ROOT)
    if options["dry_run"]:
        from gpt2.check import check

        return 1 if check([spec]) else 0
    return run(spec, options["base"])


def read_command_line(argv: list[str]) -> tuple[RunSpec, dict[str, Any]]:
    """The run that flags, environment and .config describe, and the few options that are no settings."""
    resolver = Resolver(ROOT)
    parser = flags.parser(resolver.schema, "train_ra_mla.py", str(__doc__))
    parser.add_argument("--config", help="a .config file (default: the checkout's, if there is one)")
    parser.add_argument("--dry-run", action="store_true", help="build the arm at its real size and train one step")
    parser.add_argument("--expect", metavar="HASH", help="refuse to run unless the spec hash begins so")
    namespace, given = flags.parse(resolver.schema, parser, argv)
    options: dict[str, Any] = {"dry_run": False, "config": None, "expect": "", **vars(namespace)}
    path = Path(options["config"] or ROOT / ".config")
    if options["config"] or path.exists():
        given = sources.read_file(resolver.schema, path, shown=str(options["config"] or ".config")) + given
    spec = resolver.spec(sources.variables(resolver.schema, os.environ) + given)
    if not spec.spec_hash.startswith(options["expect"]):
        raise ConfigError(f"{path} has changed since this run was planned; run `make` again")
    return spec, {**options, "base": path.resolve().parent}


def run(spec: RunSpec, base: Path) -> int:
    """Train one arm, unless it is done: in this process, or in several when the machine has them."""
    from lib.data.config import DataConfig
    from lib.data.prepare import prepare
    from lib.train.config import TrainConfig
    from lib.train.launch import is_worker, launch, processes

    path = base / fill(MatrixConfig, spec.values).output / spec.name
    config = TrainConfig.read(spec.values)
    if is_worker():
        return compose(spec, base, path, config)
    done = directory.summary_if_done(directory.find(path, spec.spec_hash), spec.spec_hash)
    if done:
        moved = directory.make_room(path, spec.spec_hash)
        print(f"{path.name}: done{', ' + moved if moved else ''}, val loss {done['val_loss']:.4f}")
        return 0
    count, note = processes(config.machine.device, config.machine.ngpus)
    if note:
        print(f"note: {note}")
    if count == 1:
        return compose(spec, base, path, config)
    prepare(fill(DataConfig, spec.values), base)  # once, before the ranks open it
    return launch(count, sys.argv)


def compose(spec: RunSpec, base: Path, path: Path, config: TrainConfig) -> int:
    """Data, model, mechanism, trainer: one process's part of a run."""
    from gpt2 import count, ra_patch, size
    from gpt2.build import build
    from lib.data.config import DataConfig
    from lib.data.prepare import prepare
    from lib.train import device, distributed
    from lib.train.config import Hooks
    from lib.train.launch import is_worker
    from lib.train.loop import train

    report = (lambda said: None) if is_worker() else print  # a launcher has said it
    dataset = prepare(fill(DataConfig, spec.values), base, report)
    values, vocabulary = spec.values, dataset.vocab_size
    model = build(values, spec.seed, vocabulary, base)
    cost = count.cost(model, values)
    width = 2 if config.precision == "bf16" else 4
    on_cpu = device.is_cpu(config.machine.device)
    empty, one = (size.memory_bytes(values, vocabulary, rows, width, on_cpu) for rows in (0, 1))
    hooks = Hooks(
        block_size=model.config.block_size,
        flops_per_token=cost.flops_per_token,
        parameters=cost.parameters,
        memory_per_row=one - empty,
        seed=ra_patch.run_seed(spec.seed, values),
        on_progress=lambda scale: ra_patch.set_ra_mlp_coupling_scale(model, scale),
        stats=lambda: ra_patch.gate_stats(model),
    )
    identity = {n: getattr(spec, n) for n in ("step", "description", "optimizer", "seed", "spec_hash", "fairness_hash")}
    run = directory.RunDirectory(path)
    try:
        if distributed.rank() == 0:
            run.open(provenance.config(spec), provenance.attempt(ROOT, devices=device.names()))
        train(model, dataset, config=config, budget=spec.budget, run=run, hooks=hooks, identity=identity)
    finally:
        run.close()
    if distributed.rank() == 0:
        print(f"done: {path}")
    return 0


if __name__ == "__main__":
    exit_with(main)
