"""How fast arms train: one optimizer step (forward, backward, clip, update) of each, interleaved, medians, as JSON.

    python scripts/bench_train.py --steps "V0 V1 V3 V6"
    python scripts/bench_train.py --steps V0 --against ../nanoGPT
    python scripts/bench_train.py --steps "V0 V1 V3 V6" --defconfig gpt2-ra-ablation --vocab 50257 --batch 8 --compile

The defaults are nanoGPT's documented CPU command. Every arm has a process of its own, as in a run, and they take turns,
so that what else the machine does falls on all of them; a ratio is the median of the ratios within a round. The first
arm runs twice: "again" is the noise. With --compile nanoGPT is measured both as documented (eager) and compiled.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from gpt2.model import GPT2, GPT2Config  # noqa: E402
from gpt2.ra_patch import patch_model, set_ra_mlp_coupling_scale  # noqa: E402
from gpt2.size import config_of, cost  # noqa: E402
from lib.config import defconfigs, sources  # noqa: E402
from lib.config.errors import ConfigError, RunError, exit_with  # noqa: E402
from lib.config.fields import Value, fill  # noqa: E402
from lib.config.resolve import Resolver  # noqa: E402
from lib.optimizers.build import OptimizerConfig, build  # noqa: E402
from lib.run import provenance  # noqa: E402
from lib.train import device as machine  # noqa: E402
from lib.train import distributed  # noqa: E402
from lib.train.config import TrainConfig  # noqa: E402
from lib.train.step import Stepper  # noqa: E402

Batch = tuple[torch.Tensor, torch.Tensor]
Step = Callable[[Batch], None]
NANOGPT = "nanoGPT"
WARM_UP = 5  # untimed steps of every arm


@dataclasses.dataclass(frozen=True)
class Job:
    """What a process measures: an arm of this project, or nanoGPT's model from the folder `against`."""

    name: str
    values: Mapping[str, Value]
    vocab: int
    batch: int
    device: str
    precision: str
    compiled: bool
    threads: int
    against: Path | None = None

    @property
    def config(self) -> GPT2Config:
        """The unpatched model's sizes."""
        return config_of(self.values, self.vocab)


class Arm:
    """One process that trains when told to, and what it has measured."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.job, self.seconds, self.about = job, [], {}  # type: ignore[var-annotated]
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(job, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.about = self._receive()

    def turn(self, steps: int) -> None:
        """Let it train for `steps` steps, and keep the seconds of one."""
        self._pipe.send(steps)
        seconds, memory = self._receive()
        self.seconds.append(seconds)
        self.about["peak_memory_bytes"] = memory

    def end(self) -> None:
        """Let it go."""
        self._pipe.send(0)
        self._process.join()

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            raise RunError(f"{self.job.name} failed; its own words are above") from None


def main() -> int:
    """Measure and print. Raises ConfigError for what cannot be measured."""
    given = arguments()
    jobs = jobs_of(given)
    arms = [Arm(job) for job in jobs]
    for number in range(given.rounds):
        for arm in arms if number % 2 == 0 else reversed(arms):
            arm.turn(given.inner)
    for arm in arms:
        arm.end()
    first, tokens = jobs[0], jobs[0].batch * jobs[0].config.block_size
    report = {
        "what": "one optimizer step: forward, backward, clip, update; random tokens already on the device",
        "sizes": {**dataclasses.asdict(first.config), "batch": first.batch, "tokens_per_step": tokens},
        "precision": first.precision,
        "rounds": given.rounds,
        "steps_per_round": given.inner,
        "reference": first.name,
        "arms": {arm.job.name: describe(arm, arms[0], tokens) for arm in arms},
        **provenance.attempt(ROOT),
    }
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    if given.out:
        given.out.write_text(text, encoding="utf-8")
        text = json.dumps({arm.job.name: report["arms"][arm.job.name]["speed"] for arm in arms}) + "\n"
    sys.stdout.write(text)
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
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--inner", type=int, default=5, help="steps of an arm per round")
    parser.add_argument("--against", type=Path, metavar="DIR", help="a checkout of karpathy/nanoGPT to race against")
    parser.add_argument("--out", type=Path, help="write the JSON here and print only the speeds")
    return parser.parse_args()


def jobs_of(given: argparse.Namespace) -> list[Job]:
    """The arms, the first once more, and nanoGPT if wanted."""
    resolver = Resolver(ROOT)
    read = defconfigs.read(resolver, given.defconfig)
    for change in given.set:
        name, _, text = change.partition("=")
        if name not in resolver.schema.options:
            raise ConfigError(f"--set {change}: no such setting; write --set GPT2_N_LAYER=12")
        read.append(sources.Assignment(resolver.schema.options[name], text, sources.VARIABLE, "--set"))
    if given.against and not (given.against / "model.py").is_file():
        raise ConfigError(f"--against {given.against}: there is no model.py; clone karpathy/nanoGPT there")
    if not given.steps.split() or min(given.rounds, given.inner, given.batch, given.vocab) < 1 or given.rounds < 2:
        raise ConfigError("--steps, --rounds (2 or more), --inner, --batch and --vocab: at least one of each")

    def job(name: str, step: str, compiled: bool, against: Path | None = None) -> Job:
        values = resolver.spec(read, step=step).values
        precision = given.precision or str(values["GPT2_PRECISION"])
        return Job(
            name, values, given.vocab, given.batch, given.device, precision, compiled, given.threads, against
        )  # fmt: skip

    names = given.steps.split()
    jobs = [job(name, name, given.compile) for name in names] + [job(f"{names[0]} again", names[0], given.compile)]
    if given.against:
        jobs.append(job(NANOGPT, names[0], False, given.against))
        if given.compile:
            jobs.append(job(f"{NANOGPT} compiled", names[0], True, given.against))
    return jobs


def describe(arm: Arm, reference: Arm, tokens: int) -> dict[str, Any]:
    """Median step, tokens/s, and speed against the reference: the median and quartiles of the rounds' ratios."""
    ratios = [theirs / own for theirs, own in zip(reference.seconds, arm.seconds, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    seconds = statistics.median(arm.seconds)
    return {
        "ms": round(1000 * seconds, 3),
        "ms_fastest": round(1000 * min(arm.seconds), 3),
        "tokens_per_second": round(tokens / seconds),
        "speed": round(median, 4),
        "speed_quartiles": [round(low, 4), round(high, 4)],
        "compiled": arm.job.compiled,
        **arm.about,
    }


# In an arm's process --------------------------------------------------------------------------------------------------


def serve(job: Job, pipe: Connection) -> None:
    """Build and warm up, then answer every number of steps with the seconds of one; zero ends it."""
    sys.stdout = sys.stderr  # nanoGPT reports its size there
    world = distributed.join(job.device, 600)
    device = world.device
    step, about = their_step(job, device) if job.against else our_step(job, world)
    batches = draw(job, device)
    for batch in batches[:WARM_UP]:
        step(batch)
    machine.settle(device)
    pipe.send({"device": machine.name(device), "threads": torch.get_num_threads(), **about})
    done = 0
    while steps := pipe.recv():
        began = time.perf_counter()
        for _ in range(steps):
            step(batches[done % len(batches)])
            done += 1
        machine.settle(device)
        pipe.send(((time.perf_counter() - began) / steps, machine.peak_memory(device)))


def draw(job: Job, device: torch.device) -> list[Batch]:
    """A few batches of random tokens."""
    shape = (8, job.batch, job.config.block_size + 1)
    tokens = torch.randint(job.vocab, shape, generator=torch.Generator().manual_seed(0)).to(device)
    return [(t[:, :-1].contiguous(), t[:, 1:].contiguous()) for t in tokens]


def our_step(job: Job, world: distributed.World) -> tuple[Step, dict[str, Any]]:
    """An arm of this project, trained by the trainer's own step; what it costs."""
    machine.set_threads(job.threads, 1)
    model = GPT2(job.config, generator=torch.Generator().manual_seed(0))
    patch_model(model, job.values, torch.Generator().manual_seed(1))
    model.to(world.device).train()
    set_ra_mlp_coupling_scale(model, 1.0)
    optimizers = build(model, fill(OptimizerConfig, job.values))
    forward: Any = torch.compile(model, fullgraph=True, dynamic=False) if job.compiled else model
    stepper = Stepper(forward, optimizers, world, 1, job.precision, TrainConfig.read(job.values).grad_clip, seed=0)
    steps = iter(range(1 << 62))
    closed = cost(job.values, job.vocab)
    return lambda batch: stepper.run(next(steps), [batch], factor=1.0), dataclasses.asdict(closed)


def their_step(job: Job, device: torch.device) -> tuple[Step, dict[str, Any]]:
    """nanoGPT's own model, optimizer and step, as the inner loop of its train.py."""
    if job.threads:
        torch.set_num_threads(job.threads)
    assert job.against
    spec = importlib.util.spec_from_file_location("nanogpt_model", job.against / "model.py")
    assert spec
    assert spec.loader
    module = sys.modules["nanogpt_model"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    sizes = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
    torch.manual_seed(0)
    model = module.GPT(module.GPTConfig(**{name: getattr(job.config, name) for name in sizes})).to(device)
    values = {name: float(job.values[f"GPT2_{name}"]) for name in ("WEIGHT_DECAY", "LEARNING_RATE", "BETA1", "BETA2")}
    optimizer = model.configure_optimizers(
        values["WEIGHT_DECAY"], values["LEARNING_RATE"], (values["BETA1"], values["BETA2"]), device.type
    )
    clip = TrainConfig.read(job.values).grad_clip
    forward: Any = torch.compile(model) if job.compiled else model

    def step(batch: Batch) -> None:
        with machine.autocast(device, job.precision):
            _, loss = forward(*batch)
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, {"parameters": sum(p.numel() for p in model.parameters())}


if __name__ == "__main__":
    exit_with(main)
