"""The end of a run: weights exported, and everything a report needs in one flat object, metrics.json."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch

from lib.run.directory import METRICS, read_rows
from lib.train import checkpoint, device
from lib.train.session import Session


def finish(session: Session) -> dict[str, Any]:
    """Export the weights and write the summary, last of all; the summary, on every rank."""
    memory = session.world.agree(device.peak_memory(session.world.device))[0]
    summary = summarise(session, int(memory))
    if session.world.is_main:
        folder = Path(session.run.path)
        times = [row["forward_time_ms"] for row in read_rows(folder / METRICS) if row.get("kind") == "log"]
        summary["forward_time_ms"] = statistics.median(times) if times else None
        checkpoint.export(session.model, folder / "model.pt")
        session.run.finish(summary)
    return summary


def summarise(session: Session, memory: int) -> dict[str, Any]:
    """What metrics.json holds; `memory` in bytes, of the process that took the most."""
    config, hooks, at, engine = session.config, session.hooks, session.at, session.engine
    seconds = session.clock.agreed
    rate, mfu = session.rates.of(session.tokens, seconds)
    return {
        **session.identity,
        "status": "done",
        **at.last_row,
        "eval_windows": engine.evaluator.windows,
        "eval_reduced": engine.evaluator.reduced,
        "iterations": at.step,
        "tokens": session.tokens,
        "flops": session.tokens * hooks.flops_per_token,
        "seconds": seconds,
        "wall_seconds": session.wall_seconds(),
        "compile_seconds": at.compile_seconds,
        "parameters": hooks.parameters,
        "flops_per_token": hooks.flops_per_token,
        "peak_memory_bytes": memory,
        "tokens_per_second": rate,
        "mfu": mfu,
        "device": device.name(session.world.device),
        "world_size": session.world.size,
        "micro_batch": session.split.micro_batch,
        "threads": session.threads,
        "compiled": engine.compiled,
        "torch": torch.__version__,
        "tokens_per_step": config.tokens_per_step,
        "data_fingerprint": session.dataset.fingerprint,
        "weights_sha256": checkpoint.weights_sha256(session.model),
        **hooks.stats(),
    }
