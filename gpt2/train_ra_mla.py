#!/usr/bin/env python
"""Train one arm: resolve its settings, build GPT-2, patch it, train it, leave a run directory.

    python gpt2/train_ra_mla.py --ra-mla-ablation-step V1 --dry-run
    python gpt2/train_ra_mla.py --dataset textfile --data-path book.txt --max-iters 200

Works from any directory, with or without a .config; --help lists every setting. With more than one process it starts
itself again under torchrun. Exit codes: 0 done, 1 failed, 2 configuration, 3 data, 75 interrupted, 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from lib.config import flags, sources  # noqa: E402
from lib.config.errors import ConfigError, exit_with  # noqa: E402
from lib.config.fields import fill, sym  # noqa: E402
from lib.config.resolve import Resolver, RunSpec  # noqa: E402


def main() -> int:
    """The program. Raises UserError for what a person can mend."""
    spec, options = read_command_line(sys.argv[1:])
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError(f"torch is missing here; run `make` in {ROOT}, then use its .venv/bin/python") from None
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
    """Train one arm: in this process, or in several when the machine has them."""
    from lib.train.launch import is_worker, launch, processes

    machine = fill(MachineConfig, spec.values)
    if not is_worker():
        count, note = processes(machine.device, machine.ngpus)
        if note:
            print(f"note: {note}")
        if count > 1:
            return launch(count, sys.argv, str(base / machine.output / spec.name))
    compose(spec, base)
    return 0
