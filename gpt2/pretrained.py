"""Exchange with transformers: weights in from a save_pretrained folder or the hub, models out as GPT2LMHeadModel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gpt2.model import GPT2, MLP, CausalSelfAttention, GPT2Config
from lib.config.errors import DataError

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

# transformers stores these as Conv1D: [in, out].
_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def from_pretrained(name: str, config: GPT2Config | None = None) -> GPT2:
    """A GPT-2 with the weights of `name`: a folder written by save_pretrained, or a name on the model hub.

    With `config` its layers, heads and width must be the weights' own; a shorter block_size drops the last positions,
    and rows of a padded vocabulary become the mean embedding (a row of zeros would outweigh real tokens, whose logits
    are negative). Raises DataError when there are no such weights or they do not fit.
    """
    hf = _load(name)
    theirs: Any = hf.config
    oddities = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_by_inverse_layer_idx": (False,),
        "scale_attn_weights": (True,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
        "n_inner": (None, 4 * theirs.n_embd),
        "layer_norm_epsilon": (1e-5,),
    }
    for key, allowed in oddities.items():
        if getattr(theirs, key) not in allowed:
            raise DataError(f"{name}: {key} is {getattr(theirs, key)}, GPT-2's is {allowed[0]}")
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


def _load(name: str) -> Any:
    try:
        from transformers import GPT2LMHeadModel
    except ModuleNotFoundError:
        raise DataError(f"transformers is missing, which reads {name}: pip install transformers") from None
    folder = Path(name).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise DataError(f"{name} has no config.json; expected a folder written by save_pretrained")
    try:
        return GPT2LMHeadModel.from_pretrained(
            str(folder) if folder.is_dir() else name, local_files_only=folder.is_dir(), dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{name} is neither a save_pretrained folder nor a model that can be fetched: {first}"
        ) from None


def _ours(state: dict[str, torch.Tensor], config: GPT2Config) -> dict[str, torch.Tensor]:
    """transformers' names and layouts to ours."""
    ours = {}
    for name, tensor in state.items():
        name = name.removeprefix("transformer.")
        if name == "lm_head.weight" or name.endswith((".attn.bias", ".attn.masked_bias")):
            continue  # the tied head, and the causal mask that old files carry
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
