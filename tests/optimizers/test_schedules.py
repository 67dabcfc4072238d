"""The laws of the learning-rate schedules: ends, monotony, continuity."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.config.errors import ConfigError
from lib.optimizers.schedules import ScheduleConfig, cosine, wsd

SHARES = st.floats(0.0, 0.9)
GRID = [i / 1000 for i in range(1001)]


@given(warmup=SHARES, floor=st.floats(0.0, 1.0))
def test_cosine_rises_to_one_and_falls_to_the_floor(warmup: float, floor: float) -> None:
    values = [cosine(p, warmup, floor) for p in GRID]
    assert cosine(warmup, warmup, floor) == 1.0
    assert values[-1] == pytest.approx(floor)
    assert all(0.0 <= v <= 1.0 for v in values)
    falling = [v for p, v in zip(GRID, values, strict=True) if p >= warmup]
    assert falling == sorted(falling, reverse=True)


@given(warmup=SHARES, decay=st.floats(0.01, 1.0), floor=st.floats(0.0, 1.0))
def test_wsd_is_flat_between_warmup_and_decay(warmup: float, decay: float, floor: float) -> None:
    assert wsd(1.0, warmup, decay, floor) == pytest.approx(floor)
    for p in GRID:
        value = wsd(p, warmup, decay, floor)
        assert 0.0 <= value <= 1.0
        if warmup <= p <= 1 - decay:
            assert value == 1.0
        elif p < warmup:
            assert value == pytest.approx(p / warmup)


def test_progress_outside_the_budget_is_held_at_its_ends() -> None:
    assert cosine(1.5, 0.1, 0.2) == pytest.approx(0.2)
    assert cosine(-1.0, 0.1, 0.2) == 0.0


def test_halfway_through_the_cosine_is_the_mean_of_peak_and_floor() -> None:
    assert cosine(0.1 + 0.45, 0.1, 0.2) == pytest.approx(0.6)
    assert math.isclose(wsd(0.9, 0.1, 0.2, 0.2), 0.6)


def test_config_turns_the_final_rate_into_a_floor_and_refuses_unknown_names() -> None:
    config = ScheduleConfig(name="cosine", warmup=0.1, decay=None, min_lr=6e-5)
    assert config.factor(1.0, 6e-4) == pytest.approx(0.1)
    with pytest.raises(ConfigError, match="cosine wsd"):
        ScheduleConfig(name="step", warmup=0.1, decay=None, min_lr=0).factor(0.5, 1e-3)
