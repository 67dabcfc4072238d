"""Everything one process holds while it trains, and the things the loop does with it between two steps."""

from __future__ import annotations

import math
import statistics
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib.config.budget import Budget
from lib.config.errors import RunError
from lib.optimizers.build import build
from lib.train import checkpoint, device, trackers
from lib.train.clock import Clock
from lib.train.config import Hooks, TrainConfig
from lib.train.distributed import World
from lib.train.evaluation import Evaluator, evaluator
from lib.train.feed import Feed
from lib.train.progress import Terminal
from lib.train.signals import StopSignal
from lib.train.step import Stepper
from lib.train.telemetry import Rates, Telemetry


class Session:
    """One run in one process: assembled by the constructor, started by begin(), ended by finish() and close()."""

    clock: Clock
    stepper: Stepper
    feed: Feed
    evaluator: Evaluator
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
        self.rows = config.rows_per_step(hooks.block_size)
        self.micro_batch = self._micro_batch()
        self.accumulation = self.rows // world.size // self.micro_batch
        self.model.to(world.device).train()
        self.optimizers = build(model, config.optimizer)
        self.step, self.last_eval, self.best = 0, -1, math.inf
        self.saved = (-1, -1)  # step and last evaluation in the newest checkpoint
        self.last_row: dict[str, Any] = {}
        self.forward_times: list[float] = []
        self.compiled, self.compile_seconds, self.earlier_wall = False, 0.0, 0.0
        self.run_id = uuid.uuid4().hex[:12]
        log = Path(run.path) / "training.log" if world.is_main else None
        self.terminal = Terminal(sys.stdout if world.is_main else None, log)
        self.telemetry = Telemetry(run.append_metrics if world.is_main else None, self.terminal, hooks.stats)
        self._save_due, self._coupling = 0.0, -1.0

    # -- beginning ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Resume from the newest good checkpoint or start afresh; compile; start the clock last."""
        found = self.world.from_main(self._newest() if self.world.is_main else None)
        for complaint in self.run.damaged:
            self.telemetry.note(complaint, self.step)
        seconds = self._resume(Path(found)) if found else self._afresh()
        self._start_trackers()
        self._compile()
        config, hooks = self.config, self.hooks
        self.evaluator = evaluator(
            self.model, self.compiled_model, self.world, config.precision, hooks.block_size, self.micro_batch,
            self.dataset, config.eval_windows,
        )  # fmt: skip
        self.feed = Feed(
            self.dataset.train, self.seed, hooks.block_size, self.rows, self.micro_batch, self.world, self.step
        )
        self.clock = Clock(
            self.budget, config.tokens_per_step, hooks.flops_per_token, seconds, self.step,
            settle=lambda: device.settle(self.world.device),
        )  # fmt: skip
        one = device.peak_flops(self.world.device, config.precision)
        peak = one * self.world.size if one else None
        self.rates = Rates(config.tokens_per_step, hooks.flops_per_token, peak, self.step, seconds)
        self.saved_at = time.monotonic()
        self.clock.start()

    def _micro_batch(self) -> int:
        machine, hooks, world = self.config.machine, self.hooks, self.world
        found = device.micro_batch(
            machine.micro_batch, self.rows, hooks.block_size, world.size, hooks.memory_per_row, hooks.parameters,
            world.device, world.local_size,
        )  # fmt: skip
        return int(-world.agree(-found)[0])  # what fits the rank with the least memory fits all

    def _newest(self) -> str | None:
        found = self.run.newest_good()
        return str(found) if found else None

    def _afresh(self) -> float:
        if self.world.is_main:
            self.run.truncate_metrics(-1, -1)
        return 0.0

    def _resume(self, folder: Path) -> float:
        state = checkpoint.read_state(folder)
        changes = checkpoint.refuse_changes(folder, state, self._fingerprint(), self.model)
        checkpoint.restore(folder, state, self.model, self.optimizers)
        self.step, self.last_eval = state["step"], state["last_eval"]
        self.saved = (self.step, self.last_eval)
        self.best = math.inf if state["best_val_loss"] is None else state["best_val_loss"]
        self.last_row, self.run_id = state["last_row"], state["run_id"]
        self.earlier_wall = state["wall_seconds"]
        if self.world.is_main:
            self.run.truncate_metrics(self.step, self.last_eval)
        self.telemetry.note(f"continues from step {self.step} ({folder.name})", self.step)
        for change in changes:
            self.telemetry.note(f"since the checkpoint, {change}: equal results, not equal bits", self.step)
        return float(state["seconds"])

    def _start_trackers(self) -> None:
        if self.world.is_main:
            folder = Path(self.run.path)
            self.telemetry.trackers = trackers.start(
                self.config.tracking, folder, folder.name, self.run_id, self.identity,
                note=lambda text: self.telemetry.note(text, self.step),
            )  # fmt: skip

    def _compile(self) -> None:
        """Compile if asked and possible, and pay for it here, before the clock: a throwaway forward and backward."""
        began = time.monotonic()
        missing = device.missing_compiler(self.world.device) if self.config.machine.compile else ""
        if missing:
            self.telemetry.note(f"torch.compile is off: {missing}", self.step)
        self.compiled = self.config.machine.compile and not missing
        if self.compiled and self.world.agree(self._warm_up())[0]:
            self.compiled = False
            torch._dynamo.reset()
        if not self.compiled:
            self._warm_up()
        device.settle(self.world.device)
        self.compile_seconds = time.monotonic() - began

    def _warm_up(self) -> float:
        """Build the stepper and run it once; 1.0 when the compiler failed."""
        self.compiled_model: Any = self.model
        if self.compiled:
            self.compiled_model = torch.compile(self.model, fullgraph=True, dynamic=False)
        self.stepper = Stepper(
            self.world.wrap(self.compiled_model), self.optimizers, self.world, self.accumulation,
            self.config.precision, self.config.grad_clip, self.seed,
        )  # fmt: skip
        shape = (self.micro_batch, self.hooks.block_size)
        drawn = torch.randint(self.dataset.vocab_size, shape, generator=torch.Generator().manual_seed(0))
        x: Tensor = drawn.to(self.world.device)
        try:
            self.stepper.warm_up(x, x)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if not self.compiled:
                raise
            self.optimizers.zero_grad()
            said = (str(error).strip().splitlines() or [""])[0][:200]
            self.telemetry.note(f"torch.compile is off: {type(error).__name__}: {said}", self.step)
            return 1.0
        return 0.0

    # -- between two steps -------------------------------------------------------------------------------------------

    def agree(self, stop: StopSignal) -> int:
        """Have all ranks see the same signal (0: none), counted seconds and need of a checkpoint."""
        main, interval = self.world.is_main, self.config.checkpoint_interval
        seconds = self.clock.read(self.step) if main else -math.inf
        due = float(main and interval > 0 and time.monotonic() - self.saved_at >= interval)
        number, self.clock.agreed, self._save_due = self.world.agree(stop.number, seconds, due)
        return int(number)

    def couple(self) -> None:
        """Tell the model how far its coupling has grown."""
        warmup = self.config.coupling_warmup
        scale = min(1.0, self.clock.progress(self.step) / warmup) if warmup > 0 else 1.0
        if scale != self._coupling:
            self.hooks.on_progress(scale)
            self._coupling = scale

    def evaluation_due(self) -> bool:
        """At step 0, at every interval, and at the end; once."""
        at_interval = self.step % self.config.eval_interval == 0
        return self.last_eval != self.step and (at_interval or self.clock.is_spent(self.step))

    def checkpoint_due(self) -> bool:
        """Whether rank 0's interval has passed."""
        return self._save_due > 0

    def log_due(self, step: int | None = None) -> bool:
        """Whether a log row belongs after `step` steps (default: now)."""
        return (self.step if step is None else step) % self.config.log_interval == 0

    def train_step(self) -> None:
        """One optimizer step."""
        config = self.config
        factor = config.schedule.factor(self.clock.ahead(self.step), config.optimizer.learning_rate)
        self.stepper.run(self.step, self.feed.step(), factor, timed=self.log_due(self.step + 1))
        self.step += 1
        if self.world.device.type == "cpu":  # where looking costs nothing
            self.check()

    def check(self) -> None:
        """Raises RunError when a loss or gradient has not been finite; waits for the device."""
        trouble = self.stepper.trouble()
        if trouble:
            raise RunError(
                f"step {trouble[0] + 1}: the {trouble[1]} is not finite; no weight has changed since. "
                "Lower GPT2_LEARNING_RATE, or look at this step's batch"
            )

    def position(self) -> dict[str, Any]:
        """Where the run stands: the fields that every row begins with."""
        return {
            "iter": self.step,
            "tokens": self.step * self.config.tokens_per_step,
            "seconds": self.clock.seconds if self.world.is_main else self.clock.agreed,
            "progress": self.clock.progress(self.step),
        }

    def log(self) -> None:
        """A log row for the step just done."""
        device.settle(self.world.device)
        self.check()
        loss = self.stepper.mean_loss()
        if not self.telemetry.speaks:
            return
        forward_ms = self.stepper.forward_ms.take()
        self.forward_times.append(forward_ms)
        rate, mfu = self.rates.since_last(self.step, self.clock.seconds)
        row = {
            **self.position(),
            "train_loss_step": loss,
            "learning_rate": self.optimizers.learning_rate,
            "grad_norm": float(self.stepper.grad_norm),
            "forward_time_ms": forward_ms,
            "tokens_per_second": rate,
            "mfu": mfu,
            "memory_bytes": device.peak_memory(self.world.device),
        }
        self.telemetry.log(row, self.clock.remaining(self.step))

    def evaluate(self, stop: StopSignal) -> None:
        """An evaluation row for these weights; nothing when a signal arrives meanwhile."""
        with self.clock.paused():
            self.check()
            found = self.evaluator.run(lambda: self.world.agree(stop.number)[0] > 0)
            if found is None:
                return
            if not math.isfinite(found["val_loss"]):
                raise RunError(f"the validation loss after step {self.step} is {found['val_loss']}")
            self.best, self.last_eval = min(self.best, found["val_loss"]), self.step
            self.last_row = {**found, "best_val_loss": self.best}
            self.telemetry.evaluation({**self.position(), **self.last_row})

    def save(self) -> None:
        """A checkpoint of this very moment, unless there is one."""
        with self.clock.paused():
            self.check()
            if self.world.is_main and self.saved != (self.step, self.last_eval):
                with self.run.new_checkpoint(self.step) as folder:
                    checkpoint.write(Path(folder), self.model, self.optimizers, self._state())
                self.run.keep(self.config.keep_checkpoints)
            self.saved, self.saved_at = (self.step, self.last_eval), time.monotonic()

    def _fingerprint(self) -> dict[str, Any]:
        """What a checkpoint must match, and what may change but is named."""
        return {
            "data_fingerprint": self.dataset.fingerprint,
            "vocab_size": int(self.dataset.vocab_size),
            "spec_hash": self.identity["spec_hash"],
            "torch": torch.__version__,
            "threads": self.threads,
            "world_size": self.world.size,
            "micro_batch": self.micro_batch,
            "device": device.name(self.world.device),
            "compile": self.config.machine.compile,
            "precision": self.config.precision,
        }

    def _state(self) -> dict[str, Any]:
        return {
            **self._fingerprint(),
            "seed": self.seed,
            "step": self.step,
            "tokens": self.step * self.config.tokens_per_step,
            "seconds": self.clock.seconds,
            "wall_seconds": self.wall_seconds(),
            "best_val_loss": self.best if math.isfinite(self.best) else None,
            "last_eval": self.last_eval,
            "last_row": {k: v for k, v in self.last_row.items() if math.isfinite(v)},
            "run_id": self.run_id,
        }

    # -- the end -----------------------------------------------------------------------------------------------------

    def wall_seconds(self) -> float:
        """Seconds since the run first began, without the time between its processes."""
        return self.earlier_wall + time.monotonic() - self.began

    def finish(self) -> dict[str, Any]:
        """Export the weights and write the summary, last of all."""
        memory = self.world.agree(device.peak_memory(self.world.device))[0]
        config, hooks, tokens = self.config, self.hooks, self.step * self.config.tokens_per_step
        seconds = self.clock.agreed
        rate, mfu = self.rates.of(tokens, seconds)
        digest = checkpoint.weights_sha256(self.model)
        if self.world.is_main:
            checkpoint.export(self.model, Path(self.run.path) / "model.pt")
        summary = {
            **self.identity,
            "status": "done",
            **self.last_row,
            "eval_windows": self.evaluator.windows,
            "eval_reduced": self.evaluator.reduced,
            "iterations": self.step,
            "tokens": tokens,
            "flops": tokens * hooks.flops_per_token,
            "seconds": seconds,
            "wall_seconds": self.wall_seconds(),
            "compile_seconds": self.compile_seconds,
            "parameters": hooks.parameters,
            "flops_per_token": hooks.flops_per_token,
            "peak_memory_bytes": int(memory),
            "tokens_per_second": rate,
            "mfu": mfu,
            "forward_time_ms": statistics.median(self.forward_times) if self.forward_times else None,
            "device": device.name(self.world.device),
            "world_size": self.world.size,
            "micro_batch": self.micro_batch,
            "threads": self.threads,
            "compiled": self.compiled,
            "torch": torch.__version__,
            "tokens_per_step": config.tokens_per_step,
            "data_fingerprint": self.dataset.fingerprint,
            "weights_sha256": digest,
            **hooks.stats(),
        }
        if self.world.is_main:
            self.run.finish(summary)
        return summary

    def close(self) -> None:
        """Stop threads and close files, whatever happened."""
        if hasattr(self, "feed"):
            self.feed.close()
        self.telemetry.trackers.finish()
        self.terminal.close()
