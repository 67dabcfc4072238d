"""Exchange with transformers: weights in from a save_pretrained folder or the hub, models out as GPT2LMHeadModel."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gpt2.model import GPT2, MLP, CausalSelfAttention, GPT2Config
from lib.config.errors import DataError

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

# transformers stores these as Conv1D: [in, out].
_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
# What old files carry besides weights: the causal mask.
_MASKS = (".attn.bias", ".attn.masked_bias")
# GPT-2's values of settings that change what transformers' GPT2LMHeadModel computes.
_USUAL: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_by_inverse_layer_idx": (False,),
    "scale_attn_weights": (True,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
    "layer_norm_epsilon": (1e-5,),
}


def from_pretrained(name: str, config: GPT2Config | None = None) -> GPT2:
    """A GPT-2 with the weights of `name`: a folder written by save_pretrained, or a name on the model hub.

    With `config` its layers, heads and width must be the weights' own; a shorter block_size drops the last positions,
    and rows of a padded vocabulary become the mean embedding (a row of zeros would outweigh real tokens, whose logits
    are negative). Raises DataError when there are no such weights or they do not fit.
    """
    hf = _load(name)
    theirs: Any = hf.config
    if theirs.n_inner not in (None, 4 * theirs.n_embd):
        raise DataError(f"{name}: n_inner is {theirs.n_inner}, GPT-2's is {4 * theirs.n_embd}")
    if unusual := unlike_gpt2(theirs):
        raise DataError(f"{name}: {unusual}")
    own = GPT2Config(
        theirs.vocab_size, theirs.n_layer, theirs.n_head, theirs.n_embd, theirs.n_positions, theirs.resid_pdrop, True
    )
    config = config or own
    for key in ("n_layer", "n_head", "n_embd", "bias"):
        if getattr(config, key) != getattr(own, key):
            raise DataError(f"{name} has {key} {getattr(own, key)}, the settings say {getattr(config, key)}")
    for key in ("block_size", "vocab_size"):
        wrong = config.block_size > own.block_size if key == "block_size" else config.vocab_size < own.vocab_size
        if wrong:
            raise DataError(f"{name} has {key} {getattr(own, key)}, the settings need {getattr(config, key)}")
    model = GPT2(config, device="meta")
    model.load_state_dict(_ours(hf.state_dict(), config), assign=True)
    return model.requires_grad_(True)


def unlike_gpt2(config: Any, keys: Iterable[str] = tuple(_USUAL)) -> str:
    """The first of `keys` in which a transformers config differs from GPT-2, in words; empty when none does."""
    for key in keys:
        if (value := getattr(config, key)) not in _USUAL[key]:
            return f"{key} is {value}, GPT-2's is {_USUAL[key][0]}"
    return ""


def _load(name: str) -> Any:
    try:
        from transformers import GPT2LMHeadModel
        from transformers.utils import logging
    except ModuleNotFoundError:
        raise DataError(f"transformers is missing, which reads {name}: pip install transformers") from None
    folder = Path(name).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise DataError(f"{name} has no config.json; expected a folder written by save_pretrained")
    is_local, verbosity = folder.is_dir(), logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # its report of unfit weights becomes one line below
    if is_local:
        logging.disable_progress_bar()
    try:
        hf, found = GPT2LMHeadModel.from_pretrained(
            str(folder) if is_local else name,
            local_files_only=is_local,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:  # besides OSError whatever a damaged file makes its reader raise
        first = (str(error).strip().splitlines() or [""])[0]
        raise DataError(
            f"{name} is neither a save_pretrained folder nor a model that can be fetched: "
            f"{type(error).__name__}: {first}"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
        if is_local:
            logging.enable_progress_bar()
    _refuse_unfit(name, hf, found)
    return hf


def _refuse_unfit(name: str, hf: Any, found: Any) -> None:
    """Raise DataError when transformers had to invent or drop a weight, or when one is not a number."""
    for kind, keys in (
        ("lacks", found["missing_keys"]),
        ("has another shape for", [key for key, *_ in found["mismatched_keys"]]),
        ("also holds", [k for k in found["unexpected_keys"] if not k.endswith((*_MASKS, "lm_head.weight"))]),
        ("has non-finite numbers in", [k for k, v in hf.state_dict().items() if not torch.isfinite(v).all()]),
    ):
        missing = sorted(k for k in keys if k != "lm_head.weight")
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise DataError(f"{name} {kind} {missing[0]}{more}; is it a GPT-2 that matches its config.json?")


def _ours(state: dict[str, torch.Tensor], config: GPT2Config) -> dict[str, torch.Tensor]:
    """transformers' names and layouts to ours."""
    ours = {}
    for name, tensor in state.items():
        name = name.removeprefix("transformer.")
        if name == "lm_head.weight" or name.endswith(_MASKS):
            continue  # the tied head, and what is no weight
        ours[name] = tensor.t().contiguous() if name.endswith(_TRANSPOSED) else tensor.detach().clone()
    ours["wpe.weight"] = ours["wpe.weight"][: config.block_size].clone()
    missing = config.vocab_size - len(ours["wte.weight"])
    mean = ours["wte.weight"].mean(0, keepdim=True)
    ours["wte.weight"] = torch.cat([ours["wte.weight"], mean.expand(missing, -1)])
    return ours


def to_hf(model: GPT2) -> GPT2LMHeadModel:
    """transformers' GPT2LMHeadModel with the same logits, for a vanilla or baked model.

    Raises ValueError for a model with a mechanism in it, or with MLPs of different widths.
    """
    import transformers

    for layer, block in enumerate(model.h):
        for module, standard in ((block.attn, CausalSelfAttention), (block.mlp, MLP)):
            if type(module) is not standard:
                raise ValueError(f"layer {layer} holds a {type(module).__name__}; bake the model first")
    widths = {block.mlp.c_fc.out_features for block in model.h}
    if len(widths) > 1:
        raise ValueError(f"transformers' GPT-2 has one MLP width; this model has {sorted(widths)}")
    c = model.config
    config = transformers.GPT2Config(
        vocab_size=c.vocab_size,
        n_positions=c.block_size,
        n_embd=c.n_embd,
        n_layer=c.n_layer,
        n_head=c.n_head,
        n_inner=widths.pop(),
        resid_pdrop=c.dropout,
        embd_pdrop=c.dropout,
        attn_pdrop=c.dropout,
        bos_token_id=None,
        eos_token_id=None,
    )
    hf = transformers.GPT2LMHeadModel(config)
    ours = {k: v.t() if k.endswith(_TRANSPOSED) else v for k, v in model.state_dict().items()}
    with torch.no_grad():
        for name, parameter in hf.transformer.named_parameters():
            # Models without biases have none to give; transformers' always has them.
            parameter.copy_(ours[name]) if name in ours else parameter.zero_()
    return hf.train(model.training)
