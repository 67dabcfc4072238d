"""torch.compile: whole graphs, no recompilation when gates or the coupling scale move, the eager numbers."""

import pytest
import torch

from gpt2.model import GPT2
from gpt2.ra_patch import patch_model, set_ra_mlp_coupling_scale
from gpt2.size import config_of
from lib.train.device import missing_compiler

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing_compiler(torch.device("cpu"))), reason="no compiler on this machine"),
]


def arm(values):
    model = GPT2(config_of(values, 97), generator=torch.Generator().manual_seed(0))
    patch_model(model, values, torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("step", ["V0", "V1", "V2", "V3", "V4", "V5", "V6", "V7", "V8", "G1", "G2"])
def test_a_compiled_arm_is_one_graph_that_outlives_changes_of_gates_and_coupling(small, step):
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    model = arm(small(step, GPT2_N_LAYER=2, GPT2_N_EMBD=64).values)
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    idx = torch.randint(97, (2, 32), generator=torch.Generator().manual_seed(2))
    graphs = None
    for number, scale in enumerate((0.0, 0.25, 0.5, 1.0)):
        set_ra_mlp_coupling_scale(model, scale)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.rsplit(".", 1)[-1] in ("w_std", "w_rec", "rwr_alpha", "mixer", "gate_bias"):
                    parameter.add_(0.05)
        loss = compiled(idx, idx)
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
        model.zero_grad()
        eager = model(idx, idx)
        eager.backward()
        torch.testing.assert_close(loss, eager, atol=1e-5, rtol=1e-5)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-4, rtol=1e-3)
        model.zero_grad()
        if number == 0:
            graphs = counters["stats"]["unique_graphs"]
    assert graphs == counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_a_compiled_chunked_loss_is_one_graph(monkeypatch, small):
    torch._dynamo.reset()
    monkeypatch.setattr("gpt2.model.token_loss.__defaults__", ("mean", 8 * 128))
    model = arm(small("V0", GPT2_N_LAYER=1).values)
    idx = torch.randint(97, (2, 32), generator=torch.Generator().manual_seed(2))
    loss = torch.compile(model, fullgraph=True, dynamic=False)(idx, idx)
    loss.backward()
    gradient = model.wte.weight.grad.clone()
    model.zero_grad()
    eager = model(idx, idx)
    assert "ChunkedLoss" in type(eager.grad_fn).__name__
    eager.backward()
    torch.testing.assert_close(loss, eager, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, model.wte.weight.grad, atol=1e-5, rtol=1e-4)
