"""The vanilla model: initialisation, shapes, what it refuses, and the loss whole or in chunks."""

import math

import pytest
import torch
import torch.nn.functional as F

from gpt2.model import GPT2, GPT2Config, pad_vocab, token_loss

CONFIG = GPT2Config(96, n_layer=4, n_head=4, n_embd=64, block_size=16, dropout=0.0, bias=True)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_weights_are_drawn_as_gpt2_draws_them():
    model = GPT2(CONFIG, generator())
    spreads = {"wte": 0.02, "wpe": 0.02, "c_attn": 0.02, "c_fc": 0.02, "c_proj": 0.02 / math.sqrt(8)}
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "ln_" in name:
            assert (parameter == 1).all(), name
        else:
            expected = spreads[name.split(".")[-2]]
            assert abs(parameter.std().item() / expected - 1) < 0.1, name
            assert abs(parameter.mean().item()) < 0.1 * expected, name


def test_weights_follow_from_the_generator_alone():
    torch.manual_seed(1)
    one = GPT2(CONFIG, generator(5)).state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two, other = GPT2(CONFIG, generator(5)).state_dict(), GPT2(CONFIG, generator(6)).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert not torch.equal(one["wte.weight"], other["wte.weight"])


def test_a_copy_shares_values_and_no_memory():
    one = GPT2(CONFIG, generator())
    two = GPT2(CONFIG, weights_of=one)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.data_ptr() != b.data_ptr()


def test_the_meta_device_has_the_shapes_without_the_weights():
    shapes = {n: p.shape for n, p in GPT2(CONFIG).named_parameters()}
    assert {n: p.shape for n, p in GPT2(CONFIG, device="meta").named_parameters()} == shapes


def test_names_are_gpt2s_without_the_prefix():
    names = set(dict(GPT2(CONFIG, device="meta").named_parameters()))
    assert {"wte.weight", "wpe.weight", "ln_f.bias", "h.3.attn.c_attn.weight", "h.0.mlp.c_fc.bias"} <= names
    assert not any(
        "bias" in n for n, _ in GPT2(GPT2Config(96, 1, 4, 64, 16, 0.0, False), device="meta").named_parameters()
    )


def test_logits_are_per_position_and_the_future_is_hidden():
    model, idx = GPT2(CONFIG, generator()).eval(), torch.randint(96, (2, 16), generator=generator())
    logits = model(idx)
    assert logits.shape == (2, 16, 96)
    changed = idx.clone()
    changed[:, 9:] = 0
    torch.testing.assert_close(model(changed)[:, :9], logits[:, :9])
    torch.testing.assert_close(model(idx[:, :5]), logits[:, :5])


def test_the_fresh_loss_is_the_entropy_of_the_uniform_guess():
    idx = torch.randint(96, (8, 16), generator=generator())
    assert abs(GPT2(CONFIG, generator())(idx, idx.flip(0)).item() - math.log(96)) < 0.1


def test_the_losses_of_tokens_average_to_the_loss():
    model, idx = GPT2(CONFIG, generator()), torch.randint(96, (3, 16), generator=generator())
    each = model(idx, idx, reduction="none")
    assert each.shape == (3, 16)
    expected = F.cross_entropy(model(idx).flatten(0, 1), idx.flatten(), reduction="none")
    torch.testing.assert_close(each.flatten(), expected)
    torch.testing.assert_close(each.mean(), model(idx, idx))


def test_more_tokens_than_positions_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match="17 tokens exceed block_size 16"):
        GPT2(CONFIG)(torch.zeros(1, 17, dtype=torch.long))


def test_dropout_acts_in_training_only():
    model = GPT2(GPT2Config(96, 1, 4, 64, 16, 0.5, True), generator())
    idx = torch.zeros(1, 8, dtype=torch.long)
    assert not torch.equal(model(idx), model(idx))
    model.eval()
    assert torch.equal(model(idx), model(idx))


def test_vocabularies_are_padded_upwards():
    assert [pad_vocab(50257, m) for m in (1, 64, 128)] == [50257, 50304, 50304]
    assert pad_vocab(64, 64) == 64


# the loss -------------------------------------------------------------------------------------------------------------

ROWS, WIDTH, VOCAB = 37, 24, 50


def head(dtype=torch.float32):
    x = torch.randn(1, ROWS, WIDTH, generator=generator(1)).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, generator=generator(2)).requires_grad_()
    return x, weight, torch.randint(VOCAB, (1, ROWS), generator=generator(3))


def loss_and_gradients(chunk, half=False, factor=3.0, **options):
    x, weight, targets = head(torch.bfloat16 if half else torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = token_loss(x, weight, targets, chunk_elements=chunk, **options)
    (factor * loss.sum()).backward()
    return loss.detach(), x.grad, weight.grad


@pytest.mark.parametrize("rows", [1, 5, 36, 37, 38])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_chunks_change_neither_the_loss_nor_its_gradients(rows, reduction):
    plain = loss_and_gradients(1 << 30, reduction=reduction)
    chunked = loss_and_gradients(rows * VOCAB, reduction=reduction)
    for ours, theirs in zip(chunked, plain, strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_chunks_under_bf16_are_as_near_the_truth_as_the_plain_loss():
    truth = loss_and_gradients(1 << 30)
    plain, chunked = loss_and_gradients(1 << 30, half=True), loss_and_gradients(7 * VOCAB, half=True)
    for exact, whole, parts in zip(truth, plain, chunked, strict=True):
        assert parts.dtype == whole.dtype
        error, allowed = (parts.float() - exact).norm(), (whole.float() - exact).norm()
        assert error <= 1.5 * allowed + 1e-6
        assert error <= 0.02 * exact.norm()


def test_chunks_without_gradients_give_the_same_loss():
    x, weight, targets = head()
    with torch.no_grad():
        for reduction in ("mean", "none"):
            whole = token_loss(x, weight, targets, reduction)
            torch.testing.assert_close(token_loss(x, weight, targets, reduction, chunk_elements=300), whole)


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("backward", [True, False])
def test_no_tensor_of_a_chunked_loss_is_larger_than_a_chunk(backward):
    x, weight, targets = head()
    limit = 5 * VOCAB
    assert x.numel() < weight.numel() < ROWS * VOCAB
    with LargestTensor() as seen, torch.set_grad_enabled(backward):
        loss = token_loss(x, weight, targets, chunk_elements=limit)
        if backward:
            loss.backward()
    assert seen.elements <= max(limit, weight.numel())
    with LargestTensor() as seen:
        token_loss(x, weight, targets).backward()
    assert seen.elements == ROWS * VOCAB
