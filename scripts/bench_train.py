"""How fast arms train: one optimizer step (forward, backward, clip, update) of each, interleaved, medians, as JSON.

    python scripts/bench_train.py --steps "V0 V1 V3 V6"
    python scripts/bench_train.py --steps V0 --against ../nanoGPT
    python scripts/bench_train.py --steps "V0 V1 V3 V6" --defconfig gpt2-ra-ablation --vocab 50257 --compile

The defaults are nanoGPT's documented CPU command. Arms take turns, so that what else the machine does falls on all of
them, and a ratio is the median of the ratios within a round. The first arm runs twice: "again" is the noise.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from gpt2.model import GPT2, GPT2Config  # noqa: E402
from gpt2.ra_patch import patch_model, set_ra_mlp_coupling_scale  # noqa: E402
from gpt2.size import config_of, cost  # noqa: E402
from lib.config import defconfigs, sources  # noqa: E402
from lib.config.errors import ConfigError, exit_with  # noqa: E402
from lib.config.fields import Value, fill  # noqa: E402
from lib.config.resolve import Resolver  # noqa: E402
from lib.optimizers.build import OptimizerConfig, build  # noqa: E402
from lib.run import provenance  # noqa: E402
from lib.train import device as machine  # noqa: E402
from lib.train import distributed  # noqa: E402
from lib.train.config import TrainConfig  # noqa: E402
from lib.train.step import Stepper  # noqa: E402

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclasses.dataclass
class Arm:
    """Something that can be trained by one step on a batch; `seconds` of each timed step, peak `memory` on a GPU."""

    name: str
    step: Callable[[Batch], None]
    seconds: list[float] = dataclasses.field(default_factory=list)
    memory: int = 0


def main() -> int:
    """Measure and print. Raises ConfigError for what cannot be measured."""
    given = arguments()
    resolver = Resolver(ROOT)
    read = defconfigs.read(resolver, given.defconfig)
    changes = [change.partition("=")[::2] for change in given.set]
    for name, text in changes:
        if name not in resolver.schema.options:
            raise ConfigError(f"--set {name}: no such setting; write --set GPT2_N_LAYER=12")
        read.append(sources.Assignment(resolver.schema.options[name], text, sources.VARIABLE, "--set"))
    names = given.steps.split()
    arms_values = {name: resolver.spec(read, step=name).values for name in names}
    world = distributed.join(given.device, 600)
    precision = given.precision or str(arms_values[names[0]]["GPT2_PRECISION"])
    threads = machine.set_threads(given.threads, 1)

    ours = [(name, name) for name in names] + [(names[0], f"{names[0]} again")]
    arms = [our_arm(label, arms_values[step], given, world, precision) for step, label in ours]
    config = config_of(arms_values[names[0]], given.vocab)
    if given.against:
        arms.append(nanogpt(given.against, config, arms_values[names[0]], given, world.device, precision))
    batches = draw(config, given.batch, world.device)
    measure(arms, batches, given.rounds, given.inner, world.device)

    tokens = given.batch * config.block_size
    report = {
        "what": "one optimizer step: forward, backward, clip, update; random tokens already on the device",
        "sizes": {**dataclasses.asdict(config), "batch": given.batch, "tokens_per_step": tokens},
        "precision": precision,
        "compiled": given.compile,
        "device": machine.name(world.device),
        "threads": threads,
        "rounds": given.rounds,
        "steps_per_round": given.inner,
        "reference": arms[0].name,
        "arms": {arm.name: describe(arm, arms[0], tokens, given.inner) for arm in arms},
        **provenance.attempt(ROOT),
    }
    for name in names:
        report["arms"][name]["flops_per_token"] = cost(arms_values[name], given.vocab).flops_per_token
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    if given.out:
        given.out.write_text(text)
    print(text if not given.out else json.dumps({n: a["speed"] for n, a in report["arms"].items()}))
    return 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", default="V0 V1 V3 V6", help="arms; the first is the reference")
    parser.add_argument("--defconfig", default="gpt2-ra-shakespeare", help="where sizes and optimizer come from")
    parser.add_argument("--set", action="append", default=[], metavar="SYMBOL=VALUE", help="change a setting")
    parser.add_argument("--vocab", type=int, default=65, help="vocabulary before padding (tiny Shakespeare: 65)")
    parser.add_argument("--batch", type=int, default=12, help="sequences per step")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="default: the defconfig's")
    parser.add_argument("--compile", action="store_true", help="torch.compile every arm")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: all cores)")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--inner", type=int, default=3, help="steps of an arm per round")
    parser.add_argument("--against", type=Path, metavar="DIR", help="a checkout of karpathy/nanoGPT to race against")
    parser.add_argument("--out", type=Path, help="write the JSON here and print only the speeds")
    return parser.parse_args()


def our_arm(label: str, values: Any, given: argparse.Namespace, world: distributed.World, precision: str) -> Arm:
    """An arm of this project, trained by the trainer's own step."""
    model = GPT2(config_of(values, given.vocab), generator=torch.Generator().manual_seed(0))
    patch_model(model, values, torch.Generator().manual_seed(1))
    model.to(world.device).train()
    optimizers = build(model, fill(OptimizerConfig, values))
    forward: Any = torch.compile(model, fullgraph=True, dynamic=False) if given.compile else model
    clip = TrainConfig.read(values).grad_clip
    stepper = Stepper(forward, optimizers, world, 1, precision, clip, seed=0)
    count = iter(range(1 << 62))
    warmup = 100

    def step(batch: Batch) -> None:
        number = next(count)
        if number <= warmup:  # as in the first tenth of a run; afterwards s stays 1
            set_ra_mlp_coupling_scale(model, number / warmup)
        stepper.run(number, [batch], factor=1.0)

    return Arm(label, step)


def nanogpt(
    folder: Path, config: GPT2Config, values: dict[str, Value], given: argparse.Namespace, device: torch.device,
    precision: str,
) -> Arm:  # fmt: skip
    """nanoGPT's own model, optimizer and step (its train.py, lines of the inner loop)."""
    path = folder / "model.py"
    if not path.is_file():
        raise ConfigError(f"--against {folder}: there is no model.py; clone karpathy/nanoGPT there")
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    wanted = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
    quiet, sys.stdout = sys.stdout, sys.stderr  # it reports its size there
    try:
        torch.manual_seed(0)
        model = module.GPT(module.GPTConfig(**{name: getattr(config, name) for name in wanted})).to(device)
        betas = (float(values["GPT2_BETA1"]), float(values["GPT2_BETA2"]))
        decay, rate = float(values["GPT2_WEIGHT_DECAY"]), float(values["GPT2_LEARNING_RATE"])
        optimizer = model.configure_optimizers(decay, rate, betas, device.type)
    finally:
        sys.stdout = quiet
    clip = TrainConfig.read(values).grad_clip
    forward: Any = torch.compile(model) if given.compile else model

    def step(batch: Batch) -> None:
        with machine.autocast(device, precision):
            _, loss = forward(*batch)
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Arm("nanoGPT", step)


def draw(config: GPT2Config, rows: int, device: torch.device) -> list[Batch]:
    """A few batches of random tokens."""
    generator = torch.Generator().manual_seed(0)
    shape = (8, rows, config.block_size + 1)
    tokens = torch.randint(config.vocab_size, shape, generator=generator).to(device)
    return [(t[:, :-1].contiguous(), t[:, 1:].contiguous()) for t in tokens]


def measure(arms: list[Arm], batches: list[Batch], rounds: int, inner: int, device: torch.device) -> None:
    """Warm every arm up, then let them take turns; each turn's seconds per step go to its arm."""
    for arm in arms:
        for batch in batches[:5]:
            arm.step(batch)
    for turn in range(rounds):
        for arm in arms if turn % 2 == 0 else reversed(arms):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            machine.settle(device)
            began = time.perf_counter()
            for number in range(inner):
                arm.step(batches[(turn * inner + number) % len(batches)])
            machine.settle(device)
            arm.seconds.append((time.perf_counter() - began) / inner)
            arm.memory = machine.peak_memory(device) if device.type == "cuda" else 0


def describe(arm: Arm, reference: Arm, tokens: int, inner: int) -> dict[str, Any]:
    """Median step, tokens/s, and speed against the reference: the median and quartiles of the rounds' ratios."""
    ratios = [theirs / own for theirs, own in zip(reference.seconds, arm.seconds, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    median = statistics.median(arm.seconds)
    found: dict[str, Any] = {
        "ms": round(1000 * median, 3),
        "ms_fastest": round(1000 * min(arm.seconds), 3),
        "tokens_per_second": round(tokens / median),
        "speed": round(statistics.median(ratios), 4),
        "speed_quartiles": [round(low, 4), round(high, 4)],
    }
    return found | ({"peak_memory_bytes": arm.memory} if arm.memory else {})


if __name__ == "__main__":
    exit_with(main)
