"""How long a matrix takes: arithmetic over a rate, whether measured or taken from finished runs."""

from types import SimpleNamespace

import pytest

from lib.config.budget import Budget
from lib.matrix.estimate import Rate, estimate, from_done

RATE = Rate(tokens_per_second=1000.0, start_seconds=5.0, source="test")


def cell(budget, summary=None):
    values = {"GPT2_TOKENS_PER_STEP": 100, "GPT2_EVAL_INTERVAL": 50}
    return SimpleNamespace(spec=SimpleNamespace(name="run", values=values, budget=budget), summary=summary)


@pytest.mark.parametrize(
    ("budget", "optimisation", "evaluations"),
    [
        (Budget("time", 60), 60.0, 2 + 12),  # 600 steps in it
        (Budget("iters", 200), 20.0, 2 + 4),
        (Budget("tokens", 30_000), 30.0, 2 + 6),
        (Budget("flops", 2e6), 20.0, 2 + 4),  # at 100 FLOPs a token
    ],
)
def test_wall_time_is_start_optimisation_and_evaluations(budget, optimisation, evaluations):
    found = estimate(cell(budget), RATE, flops_per_token=100.0, eval_tokens=3000.0)
    assert found.optimisation == pytest.approx(optimisation)
    assert found.evaluation == pytest.approx(evaluations * 1.0)  # a forward pass: a third of 3000 tokens' training
    assert found.wall == pytest.approx(5.0 + optimisation + evaluations)


def test_a_rate_is_the_median_of_what_is_done():
    done = [cell(None, {"tokens_per_second": rate, "compile_seconds": 7.0}) for rate in (10.0, 30.0, 20.0)]
    assert from_done([cell(None), *done]) == Rate(20.0, 7.0, "3 finished runs")
    assert from_done([cell(None)]) is None
