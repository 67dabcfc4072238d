"""Everything one process holds while it trains, and the things the loop does with it between two steps."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib.config.budget import Budget
from lib.config.errors import RunError
from lib.optimizers.build import build
from lib.run.directory import METRICS
from lib.run.files import sync
from lib.train import checkpoint, device, engine, trackers
from lib.train.clock import Clock
from lib.train.config import Hooks, TrainConfig
from lib.train.distributed import World
from lib.train.feed import Feed
from lib.train.microbatch import split
from lib.train.position import Position
from lib.train.progress import Terminal
from lib.train.signals import StopSignal
from lib.train.telemetry import Rates, Telemetry


class Session:
    """One run in one process: assembled by the constructor, started by begin(), ended by close()."""

    clock: Clock
    engine: engine.Engine
    feed: Feed
    rates: Rates

    def __init__(
        self,
        model: nn.Module,
        dataset: Any,
        config: TrainConfig,
        budget: Budget,
        run: Any,
        hooks: Hooks,
        identity: Mapping[str, Any],
        world: World,
    ) -> None:
        self.began = time.monotonic()
        self.model, self.dataset, self.config, self.budget = model, dataset, config, budget
        self.run, self.hooks, self.identity, self.world = run, hooks, dict(identity), world
        self.seed = int(identity["seed"]) if hooks.seed is None else hooks.seed
        self.threads = device.set_threads(config.machine.threads, world.local_size)
        self.split = split(config, hooks, world)
        self.model.to(world.device).train()
        self.optimizers = build(model, config.optimizer)
        self.at = Position()
        self.saved = (-1, -1)  # step and last evaluation in the newest checkpoint
        self._save_due, self._coupling = False, -1.0
        self.terminal = Terminal(
            sys.stdout if world.is_main else None, Path(run.path) / "training.log" if world.is_main else None
        )
        self.telemetry = Telemetry(run.append_metrics if world.is_main else None, self.terminal, hooks.stats)

    # -- beginning ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Resume from the newest good checkpoint or start afresh; compile; start the clock last."""
        config, hooks, world = self.config, self.hooks, self.world
        known = self._resume()
        self._start_trackers()
        self.engine = engine.prepare(
            self.model, self.optimizers, self.dataset, config, hooks.block_size, self.split, self.seed, world, self.note
        )
        self.at.compile_seconds += self.engine.seconds
        for change in checkpoint.changes(known, self.fingerprint()) if known else []:
            self.note(f"since the checkpoint, {change}: equal results, not equal bits")
        step, seconds = self.at.step, self.at.seconds
        self.feed = Feed(
            self.dataset.train, self.seed, hooks.block_size, self.split.rows, self.split.micro_batch, world, step
        )
        self.clock = Clock(
            self.budget, config.tokens_per_step, hooks.flops_per_token, seconds, step,
            settle=lambda: device.settle(world.device),
        )  # fmt: skip
        one = device.peak_flops(world.device, config.precision)
        self.rates = Rates(
            config.tokens_per_step, hooks.flops_per_token, one * world.size if one else None, step, seconds
        )
        self.saved_at = time.monotonic()
        self.clock.start()

    def _resume(self) -> dict[str, Any]:
        """Go to where the newest good checkpoint stands; its state, empty when there is none."""
        found = self.world.from_main(self._newest() if self.world.is_main else None)
        state: dict[str, Any] = {}
        if found:
            folder = Path(found)
            state = checkpoint.read_state(folder)
            checkpoint.refuse_changes(folder, state, self.fingerprint(), self.model)
            checkpoint.restore(folder, state, self.model, self.optimizers)
            self.at = Position.of(state)
            self.saved = (self.at.step, self.at.last_eval)
        if self.world.is_main:
            self.run.truncate_metrics(*(self.saved if found else (-1, -1)))
        for complaint in self.run.damaged:
            self.note(complaint)
        if found:
            self.note(f"continues from step {self.at.step} ({Path(found).name})")
        return state

    def _newest(self) -> str | None:
        found = self.run.newest_good()
        return str(found) if found else None

    def _start_trackers(self) -> None:
        if self.world.is_main:
            folder = Path(self.run.path)
            self.telemetry.trackers = trackers.start(
                self.config.tracking, folder, folder.name, self.at.run_id, self.identity, self.note
            )

    def note(self, text: str) -> None:
        """Something a reader of the metrics should know."""
        self.telemetry.note(text, self.at.step)

    # -- between two steps -------------------------------------------------------------------------------------------

    def agree(self, stop: StopSignal) -> int:
        """Have all ranks see the same signal (0: none), counted seconds and need of a checkpoint."""
        main, interval = self.world.is_main, self.config.checkpoint_interval
        seconds = self.clock.read(self.at.step) if main else -math.inf
        is_due = main and interval > 0 and time.monotonic() - self.saved_at >= interval
        number, self.clock.agreed, due = self.world.agree(stop.number, seconds, is_due)
        self._save_due = due > 0
        return int(number)

    def couple(self) -> None:
        """Tell the model how far its coupling has grown."""
        warmup = self.config.coupling_warmup
        scale = min(1.0, self.clock.progress(self.at.step) / warmup) if warmup > 0 else 1.0
        if scale != self._coupling:
            self.hooks.on_progress(scale)
            self._coupling = scale

    def evaluation_due(self) -> bool:
        """At step 0, at every interval, and at the end; once."""
        at_interval = self.at.step % self.config.eval_interval == 0
        return self.at.last_eval != self.at.step and (at_interval or self.is_spent())

    def checkpoint_due(self) -> bool:
        """Whether rank 0's interval has passed."""
        return self._save_due

    def log_due(self) -> bool:
        """Whether a log row belongs to the step just done."""
        return self.at.step % self.config.log_interval == 0

    def is_spent(self) -> bool:
        """Whether the budget is."""
        return self.clock.is_spent(self.at.step)

    def train_step(self) -> None:
        """One optimizer step."""
        config, step = self.config, self.at.step
        factor = config.schedule.factor(self.clock.ahead(step), config.optimizer.learning_rate)
        timed = (step + 1) % config.log_interval == 0
        self.engine.stepper.run(step, self.feed.step(), factor, timed)
        self.at.step += 1
        if self.world.device.type == "cpu":  # where looking costs nothing
            self.check()

    def check(self) -> None:
        """Raises RunError when a loss or gradient has not been finite; waits for the device."""
        trouble = self.engine.stepper.trouble()
        if trouble:
            raise RunError(
                f"step {trouble[0] + 1}: the {trouble[1]} is not finite; no weight has changed since. "
                "Lower GPT2_LEARNING_RATE, or look at this step's batch"
            )

    def where(self) -> dict[str, Any]:
        """The fields that every row begins with."""
        seconds = self.clock.seconds
        return {
            "iter": self.at.step,
            "tokens": self.tokens,
            "seconds": seconds,
            "progress": self.clock.progress(self.at.step, seconds),
        }

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        return self.at.step * self.config.tokens_per_step

    def log(self) -> None:
        """A log row for the step just done."""
        device.settle(self.world.device)
        self.check()
        loss = self.engine.stepper.mean_loss()
        if not self.world.is_main:
            return
        rate, mfu = self.rates.since_last(self.at.step, self.clock.seconds)
        row = {
            **self.where(),
            "train_loss_step": loss,
            "learning_rate": self.optimizers.learning_rate,
            "grad_norm": float(self.engine.stepper.grad_norm),
            "forward_time_ms": self.engine.stepper.forward_ms.take(),
            "tokens_per_second": rate,
            "mfu": mfu,
            "memory_bytes": device.peak_memory(self.world.device),
        }
        self.telemetry.log(row, self.clock.remaining(self.at.step))

    def evaluate(self, stop: StopSignal) -> None:
        """An evaluation row for these weights; nothing when a signal arrives meanwhile."""
        with self.clock.paused():
            self.check()
            found = self.engine.evaluator.run(lambda: self.world.agree(stop.number)[0] > 0)
            if found is None:
                return
            if not math.isfinite(found["val_loss"]):
                raise RunError(f"the validation loss after step {self.at.step} is {found['val_loss']}")
            self.at.best_val_loss = min(self.at.best_val_loss, found["val_loss"])
            self.at.last_eval = self.at.step
            self.at.last_row = {**found, "best_val_loss": self.at.best_val_loss}
            self.telemetry.evaluation({**self.where(), **self.at.last_row})

    def save(self) -> None:
        """A checkpoint of this very moment, unless there is one; no rank leaves before it is written."""
        with self.clock.paused():
            self.check()
            now = (self.at.step, self.at.last_eval)
            if self.saved != now:
                if self.world.is_main:
                    with self.run.new_checkpoint(self.at.step) as folder:
                        checkpoint.write(Path(folder), self.model, self.optimizers, self._state())
                        if (rows := Path(self.run.path) / METRICS).exists():
                            sync(rows)  # a checkpoint never outlives the rows before it
                    self.run.keep(self.config.keep_checkpoints)
                self.world.agree(0.0)
            self.saved, self.saved_at = now, time.monotonic()

    def fingerprint(self) -> dict[str, Any]:
        """What a checkpoint must match, and what may change but is named."""
        return {
            "data_fingerprint": self.dataset.fingerprint,
            "vocab_size": int(self.dataset.vocab_size),
            "spec_hash": self.identity["spec_hash"],
            "torch": torch.__version__,
            "threads": self.threads,
            "world_size": self.world.size,
            "micro_batch": self.split.micro_batch,
            "device": device.name(self.world.device),
            "compiled": self.engine.compiled if hasattr(self, "engine") else None,
            "precision": self.config.precision,
        }

    def _state(self) -> dict[str, Any]:
        self.at.seconds = self.clock.seconds
        return {
            **self.fingerprint(),
            **self.at.state(),
            "wall_seconds": self.wall_seconds(),
            "seed": self.seed,
            "tokens": self.tokens,
        }

    # -- the end -----------------------------------------------------------------------------------------------------

    def wall_seconds(self) -> float:
        """Seconds since the run first began, without the time between its processes."""
        return self.at.wall_seconds + time.monotonic() - self.began

    def close(self) -> None:
        """Stop threads and close files, whatever happened."""
        if hasattr(self, "feed"):
            self.feed.close()
        self.telemetry.trackers.finish()
        self.terminal.close()
