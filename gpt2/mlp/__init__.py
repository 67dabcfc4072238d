"""Mechanisms for a block's MLP slot, one module each, named as the values of the choice MLP.

A module has a `Config`, a frozen dataclass of its settings, and `patch(model, cfg, generator, values)`, which replaces
`mlp` in the blocks of a GPT2 in place. gpt2/ra_patch.py finds it by its name.
"""
