"""A run's state on disk: model.safetensors, optimizer.safetensors, state.json; nothing that could run code on loading.

The run directory makes the folder atomic and verifies every file's sha256 before it offers it back. Batches and dropout
are pure functions of (seed, step), so the step is the data position and there is no generator to save.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lib.config.errors import ConfigError, DataError, RunError
from lib.optimizers.build import Optimizers

FORMAT = 1
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
# What may change under a checkpoint, at the cost of the last bits.
EXACT = ("torch", "threads", "world_size", "micro_batch", "device", "compiled", "precision")


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's state without the second names of shared tensors (a tied output)."""
    seen: dict[int, str] = {}
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if seen.setdefault(id(tensor), name) == name:
            found[name] = tensor.detach()
    return found


def write(folder: Path, model: nn.Module, optimizers: Optimizers, state: Mapping[str, Any]) -> None:
    """Fill `folder`. Raises RunError with the cause when it cannot be written."""
    try:
        save_file(_contiguous(unique_tensors(model)), folder / MODEL)
        save_file(_contiguous(optimizers.tensors()), folder / OPTIMIZER)
        complete = {**state, "format": FORMAT, "counters": optimizers.counters()}
        (folder / STATE).write_text(json.dumps(complete, indent=1, sort_keys=True, allow_nan=False) + "\n")
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot write the checkpoint {folder}: {error}; older checkpoints are intact") from error


def read_state(folder: Path) -> dict[str, Any]:
    """state.json of a verified checkpoint. Raises RunError when its format is not this one."""
    state = json.loads((folder / STATE).read_text())
    if state.get("format") != FORMAT:
        raise RunError(f"{folder}: checkpoint format {state.get('format')}, this code reads {FORMAT}; move it away")
    return dict(state)


def refuse_changes(folder: Path, state: Mapping[str, Any], now: Mapping[str, Any], model: nn.Module) -> None:
    """Raise DataError or ConfigError naming the first thing that must not have changed and has.

    The data, the vocabulary, the model's shapes, the settings.
    """
    for key, meaning in (("data_fingerprint", "the tokens"), ("vocab_size", "the vocabulary")):
        if state[key] != now[key]:
            raise DataError(
                f"{folder}: {meaning} changed under this checkpoint ({state[key]}, now {now[key]}); "
                "bring the old data back or train into another output folder"
            )
    want = {name: list(tensor.shape) for name, tensor in unique_tensors(model).items()}
    with safe_open(folder / MODEL, framework="pt") as file:
        have = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    for name in sorted(want.keys() | have.keys()):
        if want.get(name) != have.get(name):
            raise ConfigError(
                f"{folder}: the model changed under this checkpoint: {name} is {have.get(name, 'absent')} there, "
                f"{want.get(name, 'absent')} now; restore the settings or train into another output folder"
            )
    if state["spec_hash"] != now["spec_hash"]:
        raise ConfigError(
            f"{folder}: this checkpoint belongs to spec {state['spec_hash']}, the run is {now['spec_hash']}; "
            "restore the settings or train into another output folder"
        )


def changes(state: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What else is not as it was, in words: it may change, at the cost of the last bits."""
    return [f"{key} was {state.get(key)}, is {now[key]}" for key in EXACT if state.get(key) != now[key]]


def restore(folder: Path, state: Mapping[str, Any], model: nn.Module, optimizers: Optimizers) -> None:
    """Load weights and optimizer state into `model` and `optimizers`, bit for bit."""
    saved = load_file(folder / MODEL)
    with torch.no_grad():
        for name, tensor in unique_tensors(model).items():
            tensor.copy_(saved[name])
    optimizers.load(load_file(folder / OPTIMIZER), state["counters"])


def export(model: nn.Module, path: Path) -> None:
    """Write model.pt, a plain state dict for torch.load(weights_only=True), atomically."""
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict(keep_vars=True).items()}
    shared: dict[int, Tensor] = {}  # .cpu() of a GPU tensor copies: keep tied names tied in the file
    for name, tensor in model.state_dict(keep_vars=True).items():
        state[name] = shared.setdefault(id(tensor), state[name])
    partial = path.with_name(f".{path.name}.tmp")  # one name: what a kill leaves here, the next export replaces
    try:
        # Our own handle: torch.save(path) turns a full disk into a misleading RuntimeError.
        with open(partial, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        parent = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {error}; the last checkpoint is intact") from error


def weights_sha256(model: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of the model's state, whatever file holds it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unique_tensors(model).items()):
        tensor = tensor.cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
