"""What the trainer is told: its settings by symbol, and what only the composer knows about the model and the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lib.config.errors import ConfigError
from lib.config.fields import Value, fill, sym
from lib.optimizers.build import OptimizerConfig
from lib.optimizers.schedules import ScheduleConfig


@dataclass(frozen=True)
class MachineConfig:
    """Where a run computes. Nothing here changes what it computes, except the last bits."""

    device: str = sym("GPT2_DEVICE")
    ngpus: int = sym("GPT2_NGPUS")
    micro_batch: int = sym("GPT2_MICRO_BATCH")
    compile: bool = sym("GPT2_COMPILE")
    threads: int = sym("GPT2_THREADS")
    dist_timeout: int = sym("GPT2_DIST_TIMEOUT")


@dataclass(frozen=True)
class TrackingConfig:
    """Trackers beside metrics.jsonl."""

    wandb: bool = sym("GPT2_WANDB")
    wandb_project: str | None = sym("GPT2_WANDB_PROJECT")
    wandb_mode: str | None = sym("GPT2_WANDB_MODE")
    tensorboard: bool = sym("GPT2_TENSORBOARD")


@dataclass(frozen=True)
class TrainConfig:
    """Everything the loop follows; intervals are in optimizer steps, the checkpoint interval in seconds."""

    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    machine: MachineConfig
    tracking: TrackingConfig
    tokens_per_step: int = sym("GPT2_TOKENS_PER_STEP")
    grad_clip: float = sym("GPT2_GRAD_CLIP")
    coupling_warmup: float = sym("GPT2_COUPLING_WARMUP")
    eval_interval: int = sym("GPT2_EVAL_INTERVAL")
    eval_windows: int = sym("GPT2_EVAL_WINDOWS")
    precision: str = sym("GPT2_PRECISION")
    log_interval: int = sym("GPT2_LOG_INTERVAL")
    checkpoint_interval: int = sym("GPT2_CHECKPOINT_INTERVAL")
    keep_checkpoints: int = sym("GPT2_KEEP_CHECKPOINTS")

    @classmethod
    def read(cls, values: Mapping[str, Value]) -> TrainConfig:
        """The trainer's settings from resolved `values`. Raises ConfigError when the final rate exceeds the peak."""
        optimizer, schedule = fill(OptimizerConfig, values), fill(ScheduleConfig, values)
        if schedule.min_lr > optimizer.learning_rate:
            raise ConfigError(
                f"GPT2_MIN_LR is {schedule.min_lr:g}, above GPT2_LEARNING_RATE ({optimizer.learning_rate:g}); "
                "the final learning rate is at most the peak"
            )
        return fill(
            cls,
            values,
            optimizer=optimizer,
            schedule=schedule,
            machine=fill(MachineConfig, values),
            tracking=fill(TrackingConfig, values),
        )

    def rows_per_step(self, block_size: int) -> int:
        """Sequences per optimizer step. Raises ConfigError when the tokens do not divide into them."""
        rows, rest = divmod(self.tokens_per_step, block_size)
        if rest or not rows:
            nearest = max(1, round(self.tokens_per_step / block_size)) * block_size
            raise ConfigError(
                f"GPT2_TOKENS_PER_STEP is {self.tokens_per_step}, no multiple of the context length {block_size}; "
                f"the nearest is {nearest}"
            )
        return rows


@dataclass(frozen=True)
class Hooks:
    """What the composer knows about its model.

    on_progress(s): the coupling scale s in [0, 1] for what follows. stats(): numbers for every log and evaluation row.
    memory_per_row: bytes of activations of one sequence in training, 0 when unknown. seed: of batches and dropout, when
    it is not the run's own.
    """

    block_size: int
    flops_per_token: float
    parameters: int
    memory_per_row: float = 0.0
    seed: int | None = None
    on_progress: Callable[[float], None] = lambda s: None
    stats: Callable[[], Mapping[str, float]] = dict
