"""The one training loop: resume or begin, step until the budget is spent, evaluate, log, save, finish.

A run is a pure function of its settings and data: batches and dropout follow from (seed, step), so a run that was
killed and continued ends with the same bits (budgets in steps, tokens or FLOPs; same threads, ranks and torch).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lib.config.budget import Budget
from lib.config.errors import RunError, UserError
from lib.train import distributed
from lib.train.config import Hooks, TrainConfig
from lib.train.session import Session
from lib.train.signals import StopSignal, interrupted
from lib.train.summary import finish


def train(
    model: nn.Module,
    dataset: Any,
    *,
    config: TrainConfig,
    budget: Budget,
    run: Any,
    hooks: Hooks,
    identity: Mapping[str, Any],
) -> dict[str, Any]:
    """Train `model` on `dataset` (.train, .val, .vocab_size, .token_bytes, .fingerprint) into the run directory `run`.

    model(idx, targets) is a mean loss, model(idx, targets, reduction="none") losses [B, T]. `identity` holds step,
    optimizer, seed, description, spec_hash and fairness_hash; it goes into metrics.json. Returns that summary.

    Raises Interrupted after a signal (a checkpoint is saved), RunError when the run fails (it is recorded),
    ConfigError or DataError when it cannot begin or its checkpoint belongs to something else.
    """
    world = distributed.join(config.machine.device, config.machine.dist_timeout)
    failed = True
    try:
        with StopSignal(patient=world.size > 1) as stop, distributed.losses_of_ranks(world):
            session = Session(model, dataset, config, budget, run, hooks, identity, world)
            try:
                summary = loop(session, stop)
            finally:
                session.close()
        failed = False
        return summary
    except torch.OutOfMemoryError as error:
        raise _record(run, world, out_of_memory(error, config)) from error
    except RunError as error:
        raise _record(run, world, error) from error.__cause__
    except UserError:
        failed = False
        raise
    except Exception as error:  # a mistake in the code: recorded too, or the run would look as if it had only stopped
        _record(run, world, RunError(f"{type(error).__name__}: {error}"))
        raise
    finally:
        world.leave(at_once=failed)


def loop(session: Session, stop: StopSignal) -> dict[str, Any]:
    """Steps until the budget is spent; between two steps everything else."""
    session.begin()
    while True:
        signal = session.agree(stop)
        session.couple()
        if signal:
            session.save()
            raise interrupted(signal, session.at.step)
        if session.evaluation_due():
            session.evaluate(stop)  # gives up when a signal arrives; it is then still due
            continue
        if session.is_spent():
            break
        if session.checkpoint_due():
            session.save()
        session.train_step()
        if session.log_due():
            session.log()
    session.save()
    return finish(session)


def out_of_memory(error: torch.OutOfMemoryError, config: TrainConfig) -> RunError:
    """The one line for a full device."""
    said = str(error).splitlines()[0][:200]
    return RunError(
        f"out of memory ({said}); set GPT2_MICRO_BATCH to a smaller divisor (tokens per step stay "
        f"{config.tokens_per_step}), now {config.machine.micro_batch or 'derived'}"
    )


def _record(run: Any, world: distributed.World, error: RunError) -> RunError:
    if world.is_main:
        run.fail(str(error))
    return error
