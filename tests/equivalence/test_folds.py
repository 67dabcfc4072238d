"""The folds against explicit, dense, float64 oracles (mathematics, sections 1 to 3)."""

import itertools

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from ra import ReciprocalMLP, UnifiedRAttention

C, H, T = 32, 4, 9
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def randomise(module):
    """Every parameter random, in float64: gates of both signs, biases that are not zero."""
    generator = torch.Generator().manual_seed(1)
    module = module.double()
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.double))
            if name == "rwr_alpha":
                p.copy_(torch.rand(p.shape, generator=generator) / 2)
    return module.to(DEVICE)


def inputs():
    return torch.randn(2, T, C, generator=torch.Generator().manual_seed(2), dtype=torch.double).to(DEVICE)


def sides(layer, x):
    """For each head q_std, k_std, q_low, k_low, v: read from the stored rows by walking them in order."""
    z = F.linear(x, layer.c_attn.weight, layer.c_attn.bias)
    d, R, at, found = layer.head_dim, layer.R, 0, {"q": [], "k": [], "v": []}
    for side in "qkv":
        for head in range(H):
            short = side != "v" and layer.share == "tied" and head in layer.heads
            width = d - R if short else d
            found[side].append(z[..., at : at + width])
            at += width
    assert at == z.shape[-1]
    for head in range(H):
        q, k, v = (found[side][head] for side in "qkv")
        if head not in layer.heads:
            yield q, k, q[..., :0], k[..., :0], v
        elif layer.share == "tied":
            yield q, k, q[..., :R], k[..., :R], v
        else:
            # Qf = [Q_std | K_low], Kf = [K_std | Q_low]
            yield q[..., : d - R], k[..., : d - R], k[..., d - R :], q[..., d - R :], v


def oracle(layer, x):
    """score_ij = w_std q_i.k_j + w_rec k_i.q_j, pair by pair; softmax over j <= i; restart; projection."""
    s, outputs = layer.coupling_scale, []
    for head, (q, k, q_low, k_low, v) in enumerate(sides(layer, x)):
        here = layer.heads.index(head) if head in layer.heads else None
        w_std = w_rec = torch.ones(()).to(x)
        if here is not None:
            at = here if len(layer.w_std) > 1 else 0
            w_std = (1 - s) + s * layer.w_std[at]
            w_rec = s * layer.w_rec[at] + (0 if layer.share == "tied" else 1 - s)
        A = torch.zeros(x.shape[0], T, T).to(x)
        for b, i in itertools.product(range(x.shape[0]), range(T)):
            scores = [w_std * q[b, i] @ k[b, j] + w_rec * k_low[b, i] @ q_low[b, j] for j in range(i + 1)]
            A[b, i, : i + 1] = torch.softmax(torch.stack(scores) / layer.head_dim**0.5, dim=0)
        if layer.use_self_restart:
            A = one_step(A, layer.rwr_alpha[head].clamp(0, 0.5), s)
        outputs.append(A @ v)
    return layer.c_proj(torch.cat(outputs, dim=-1))


def one_step(A, alpha, s):
    """(1 - s) A + s ((1 - alpha) A + alpha I): T = 1 of the random walk's closed form, warmed up."""
    eye = torch.eye(T).to(A)
    return (1 - s) * A + s * ((1 - alpha) * A + alpha * eye)


ATTENTIONS = [
    {"R": 4},
    {"R": 1, "bias": False},
    {"R": 7, "per_head_gates": False},
    {"R": 3, "heads": [1, 3]},
    {"R": 4, "use_self_restart": True},
    {"R": 4, "share": "tied"},
    {"R": 2, "share": "tied", "per_head_gates": False, "bias": False},
    {"R": 3, "share": "tied", "heads": [0, 1]},
    {"R": 3, "share": "tied", "heads": [2], "use_self_restart": True},
]


@pytest.mark.parametrize("s", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("options", ATTENTIONS, ids=str)
def test_fold_is_the_two_term_score(options, s):
    layer, x = randomise(UnifiedRAttention(C, H, dropout=0.0, **options)), inputs()
    layer.coupling_scale.fill_(s)
    torch.testing.assert_close(layer(x), oracle(layer, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", ATTENTIONS, ids=str)
def test_gradients_of_the_fold_are_the_oracles(options):
    layer, x = randomise(UnifiedRAttention(C, H, dropout=0.0, **options)), inputs()[:1].requires_grad_()
    wanted = [x, *layer.parameters()]
    ours = torch.autograd.grad(layer(x).square().sum(), wanted)
    theirs = torch.autograd.grad(oracle(layer, x).square().sum(), wanted)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_restart_is_clamped_to_half():
    """alpha outside [0, 1/2] acts as the nearer end, at any s."""
    layer, x = randomise(UnifiedRAttention(C, H, dropout=0.0, use_self_restart=True)), inputs()
    layer.coupling_scale.fill_(0.8)
    with torch.no_grad():
        layer.rwr_alpha.copy_(torch.tensor([-0.7, 0.2, 0.6, 9.0]))
        clamped = oracle(layer, x)
        torch.testing.assert_close(layer(x), clamped, rtol=0, atol=1e-12)
        layer.rwr_alpha.copy_(torch.tensor([0.0, 0.2, 0.5, 0.5]))
        torch.testing.assert_close(layer(x), clamped, rtol=0, atol=1e-12)


def test_two_concatenations_have_no_cross_terms():
    """The inner product of [a | b] and [c | d] is a.c + b.d; [a | b].[d | c] would hold the crossed ones."""
    layer, x = randomise(UnifiedRAttention(C, H, R=4, heads=[0])), inputs()
    q, k, _ = F.linear(x, *layer.folded()).chunk(3, dim=-1)
    q_std, k_std, q_low, k_low, _ = next(iter(sides(layer, x)))
    folded = q[..., :8] @ k[..., :8].transpose(1, 2)
    two = layer.w_std[0] * q_std @ k_std.transpose(1, 2) + layer.w_rec[0] * k_low @ q_low.transpose(1, 2)
    torch.testing.assert_close(folded, two, rtol=0, atol=1e-12)


def test_tied_scores_are_reciprocal():
    """With w_std = 0 what i pays to j is what j's key says of i's query: S_rec = (Q_low K_low^T)^T."""
    layer, x = randomise(UnifiedRAttention(C, H, R=4, share="tied")), inputs()
    with torch.no_grad():
        layer.w_std.zero_()
        layer.w_rec.fill_(1.0)
    q, k, _ = F.linear(x, *layer.folded()).chunk(3, dim=-1)
    _, _, q_low, k_low, _ = next(iter(sides(layer, x)))
    scores = q[..., :8] @ k[..., :8].transpose(1, 2)
    torch.testing.assert_close(scores, (q_low @ k_low.transpose(1, 2)).transpose(1, 2), rtol=0, atol=1e-12)


def test_one_step_restart_is_the_random_walk_of_one_step():
    """y^T = ((1-a) A)^T v + a sum_{t<T} ((1-a) A)^t v, at T = 1, against the recursion written out."""
    A = torch.rand(T, T, dtype=torch.double).tril().softmax(-1)
    v, a = torch.randn(T, 8, dtype=torch.double), 0.3
    walk = (1 - a) * A
    closed = walk @ v + a * torch.linalg.matrix_power(walk, 0) @ v
    torch.testing.assert_close(one_step(A, a, 1.0) @ v, closed)


def mlp_oracle(mlp, x):
    """W_down [w_std h_std | w_rec g M h_low], path by path, with the homotopies written as (1-s) + s w."""
    s, R = mlp.coupling_scale, mlp.R_ff
    up, bias = mlp.c_fc.weight, mlp.c_fc.bias
    if mlp.tie_up_low:
        up = torch.cat([up, up[:R]])
        bias = None if bias is None else torch.cat([bias, bias[:R]])
    h = F.gelu(F.linear(x, up, bias), approximate="tanh")
    h_std, h_low = h[..., :-R], h[..., -R:]
    if mlp.mixer is not None:
        h_low = h_low @ ((1 - s) * torch.eye(R).to(x) + s * mlp.mixer).T
    if mlp.gate_alpha is not None:
        g = torch.sigmoid(x @ mlp.gate_alpha + mlp.gate_bias)[..., None]
        h_low = h_low * ((1 - s) + s * g)
    w_std, w_rec = (1 - s) + s * mlp.w_std, (1 - s) + s * mlp.w_rec
    down = mlp.c_proj.weight
    out = w_std * h_std @ down[:, :-R].T + w_rec * h_low @ down[:, -R:].T
    return out if mlp.c_proj.bias is None else out + mlp.c_proj.bias


MLPS = [
    {"use_mixer": m, "use_gates": g, "tie_up_low": t, "bias": b}
    for m, g, t, b in itertools.product([False, True], repeat=4)
]


@pytest.mark.parametrize("s", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("options", MLPS, ids=str)
def test_reciprocal_mlp_is_its_two_paths(options, s):
    mlp, x = randomise(ReciprocalMLP(C, R_ff=24, dropout=0.0, **options)), inputs()
    mlp.coupling_scale.fill_(s)
    torch.testing.assert_close(mlp(x), mlp_oracle(mlp, x), rtol=1e-11, atol=1e-11)


def test_gradients_of_the_reciprocal_mlp_are_the_oracles():
    mlp = randomise(ReciprocalMLP(C, R_ff=24, use_mixer=True, use_gates=True, tie_up_low=True, dropout=0.0))
    mlp.coupling_scale.fill_(0.6)
    x = inputs().requires_grad_()
    wanted = [x, *mlp.parameters()]
    ours = torch.autograd.grad(mlp(x).square().sum(), wanted)
    theirs = torch.autograd.grad(mlp_oracle(mlp, x).square().sum(), wanted)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [o for o in ATTENTIONS if "use_self_restart" not in o], ids=str)
@pytest.mark.parametrize("s", [1.0, 0.3])
def test_baked_attention_is_standard_attention(options, s):
    layer, x = randomise(UnifiedRAttention(C, H, dropout=0.0, **options)), inputs()
    layer.coupling_scale.fill_(s)
    c_attn, c_proj = layer.bake()
    assert type(c_attn) is nn.Linear
    q, k, v = (z.view(2, T, H, C // H).transpose(1, 2) for z in c_attn(x).chunk(3, dim=-1))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(c_proj(y.transpose(1, 2).reshape(2, T, C)), layer(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [o for o in MLPS if not o["use_gates"]], ids=str)
def test_baked_mlp_is_a_standard_mlp(options):
    mlp, x = randomise(ReciprocalMLP(C, R_ff=24, dropout=0.0, **options)), inputs()
    mlp.coupling_scale.fill_(0.7)
    c_fc, c_proj = mlp.bake()
    assert c_fc.out_features == 4 * C
    torch.testing.assert_close(c_proj(F.gelu(c_fc(x), approximate="tanh")), mlp(x), rtol=1e-12, atol=1e-12)
