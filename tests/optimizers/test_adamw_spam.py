"""AdamWSPAM against a slow float64 oracle written from algorithm 1, and against torch's AdamW where SPAM is off."""

import copy
import math
import subprocess
import sys

import pytest
import torch

from lib.optimizers.adamw_spam import GRACE, AdamWSPAM, clip_spikes, warmup_scale

SHAPES = [(7, 5), (11,), (3, 4)]


def parameters() -> list[torch.nn.Parameter]:
    g = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=g)) for shape in SHAPES]


def gradients(step: int) -> list[torch.Tensor]:
    """Normal gradients with a thousandfold spike in a few places now and then."""
    g = torch.Generator().manual_seed(100 + step)
    out = [torch.randn(shape, generator=g) for shape in SHAPES]
    if step % 7 == 3:
        out[0][2, 3] *= 1000
        out[1][5] *= -1000
    return out


def oracle(steps: int, lr: float, wd: float, theta: float, interval: int, warmup: int) -> list[torch.Tensor]:
    """Element by element, float64, one scalar at a time."""
    b1, b2, eps = 0.9, 0.95, 1e-8
    flat = [p.detach().double().flatten().tolist() for p in parameters()]
    m = [[0.0] * len(p) for p in flat]
    v = [[0.0] * len(p) for p in flat]
    count = 0
    for n in range(1, steps + 1):
        since = n % interval if interval and n >= interval else n
        was_reset = bool(interval) and n >= interval
        if was_reset and since == 0:
            m = [[0.0] * len(p) for p in flat]
            v = [[0.0] * len(p) for p in flat]
            count = 0
        count += 1
        scale = 1.0
        if was_reset and since < warmup:
            scale = 1 - 0.99 * 0.5 * (1 + math.cos(math.pi * since / (warmup + 1)))
        for t, grad in enumerate(gradients(n)):
            for i, g in enumerate(grad.double().flatten().tolist()):
                if theta and since >= 20 and g * g > theta * v[t][i]:
                    g = math.copysign(math.sqrt(theta * v[t][i]), g)
                m[t][i] = b1 * m[t][i] + (1 - b1) * g
                v[t][i] = b2 * v[t][i] + (1 - b2) * g * g
                update = (m[t][i] / (1 - b1**count)) / (math.sqrt(v[t][i] / (1 - b2**count)) + eps)
                flat[t][i] = flat[t][i] * (1 - lr * wd) - lr * scale * update
    return [torch.tensor(p, dtype=torch.float64).reshape(s) for p, s in zip(flat, SHAPES, strict=True)]


def run(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], first: int, last: int) -> None:
    for n in range(first, last + 1):
        for p, g in zip(params, gradients(n), strict=True):
            p.grad = g
        optimizer.step()


@pytest.mark.parametrize(
    ("theta", "interval", "warmup"), [(50.0, 40, 15), (4.0, 30, 30), (50.0, 0, 0), (0.0, 25, 10), (2.0, 30, 0)]
)
def test_it_follows_the_slow_oracle(theta: float, interval: int, warmup: int) -> None:
    params = parameters()
    optimizer = AdamWSPAM(params, lr=0.01, weight_decay=0.1, theta=theta, interval=interval, warmup=warmup)
    run(optimizer, params, 1, 90)
    for ours, slow in zip(params, oracle(90, 0.01, 0.1, theta, interval, warmup), strict=True):
        torch.testing.assert_close(ours.detach().double(), slow, atol=2e-5, rtol=2e-5)


def test_without_spikes_and_resets_it_is_torch_adamw_to_the_bit() -> None:
    ours, theirs = parameters(), parameters()
    run(AdamWSPAM(ours, lr=0.01, theta=0, interval=0), ours, 1, 50)
    run(torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, fused=True), theirs, 1, 50)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_clipping_touches_only_spikes_and_keeps_their_sign() -> None:
    g = torch.tensor([0.5, -0.5, 100.0, -100.0, 0.0])
    v = torch.ones(5)
    clip_spikes([g], [v], 4.0)
    assert g.tolist() == [0.5, -0.5, 2.0, -2.0, 0.0]


def test_no_clipping_in_the_first_steps() -> None:
    params = parameters()
    spam = AdamWSPAM(params, theta=1e-6, interval=0)
    for n in range(1, GRACE + 1):
        before = gradients(n)
        for p, g in zip(params, before, strict=True):
            p.grad = g.clone()
        spam.step()
        clipped = any(not torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))
        assert clipped == (n >= GRACE)


def test_warm_up_scale_rises_from_one_hundredth_to_one() -> None:
    scales = [warmup_scale(k, 10) for k in range(12)]
    assert scales[0] == pytest.approx(0.01)
    assert scales[10:] == [1.0, 1.0]
    assert scales == sorted(scales)
    assert warmup_scale(0, 0) == 1.0


@pytest.mark.parametrize("at", [1, 19, 24, 25, 26, 49])
def test_a_state_dict_round_trip_changes_no_bit(at: int) -> None:
    straight, broken = parameters(), parameters()
    run(AdamWSPAM(straight, lr=0.01, interval=25, warmup=10), straight, 1, 60)
    first = AdamWSPAM(broken, lr=0.01, interval=25, warmup=10)
    run(first, broken, 1, at)
    saved = copy.deepcopy(first.state_dict())
    second = AdamWSPAM(broken, lr=0.5, interval=7, warmup=1)
    second.load_state_dict(saved)
    run(second, broken, at + 1, 60)
    assert all(torch.equal(a, b) for a, b in zip(straight, broken, strict=True))


def test_found_inf_leaves_weights_and_moments_alone() -> None:
    params = parameters()
    spam = AdamWSPAM(params)
    run(spam, params, 1, 3)
    before = copy.deepcopy([p.detach() for p in params])
    moments = copy.deepcopy(spam.state_dict()["state"])
    spam.found_inf = torch.ones(1)
    for p in params:
        p.grad = torch.full_like(p, math.nan)
    spam.step()
    assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))
    after = spam.state_dict()["state"]
    assert all(torch.equal(moments[k][s], after[k][s]) for k in moments for s in moments[k])


@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"theta": -1.0}, {"betas": (1.0, 0.9)}])
def test_impossible_numbers_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError):
        AdamWSPAM(parameters(), **bad)


def test_an_eager_step_does_not_import_the_compiler(root) -> None:
    code = (
        "import sys, torch\nfrom lib.optimizers.adamw_spam import AdamWSPAM\n"
        "p = torch.nn.Parameter(torch.ones(3))\no = AdamWSPAM([p])\np.grad = torch.ones(3)\no.step()\n"
        "o.load_state_dict(o.state_dict())\no.zero_grad()\nsys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
