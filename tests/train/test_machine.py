"""The machine under a run: how a step is split, which peak counts, how many threads, what memory is free."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.config.budget import Budget
from lib.config.errors import ConfigError
from lib.train import device, microbatch
from lib.train.config import Hooks, TrainConfig
from lib.train.distributed import World
from lib.train.telemetry import Rates
from tests.train.harness import BLOCK, rows, run, values

CPU = torch.device("cpu")


def split(world=1, hooks=None, **settings):
    told = {"block_size": BLOCK, "flops_per_token": 1.0, "parameters": 0, **(hooks or {})}
    return microbatch.split(TrainConfig.read(values(**settings)), Hooks(**told), World(0, world, world, CPU))


class Silent(World):
    """One of several ranks, without the others."""

    def agree(self, *values):
        return list(values)


def derived(world=1, *, rows=12, free=1e12, monkeypatch, **hooks):
    told = {"block_size": BLOCK, "flops_per_token": 1.0, "parameters": 0, **hooks}
    monkeypatch.setattr(device, "free_memory", lambda where, processes: free)
    settings = TrainConfig.read(values(TOKENS_PER_STEP=rows * BLOCK, MICRO_BATCH=0))
    return microbatch.split(settings, Hooks(**told), Silent(0, world, world, CPU))


@given(st.integers(1, 3000))
def test_divisors_are_all_and_in_order(n):
    assert microbatch.divisors(n) == [d for d in range(1, n + 1) if n % d == 0]


@given(st.integers(1, 500), st.floats(0.01, 100), st.floats(-10, 1000), st.integers(1, 600))
def test_the_derived_micro_batch_is_the_largest_divisor_that_fits_or_one(share, per_row, available, cap):
    found = microbatch.derive(share, per_row, available, cap)
    assert share % found == 0
    assert found <= cap
    assert found == 1 or found * per_row <= available * (1 + 1e-9)
    larger = [d for d in range(found + 1, share + 1) if share % d == 0 and d <= cap]
    assert not any(d * per_row < available * (1 - 1e-9) for d in larger)


def test_the_split_covers_the_step_exactly(monkeypatch):
    for world in (1, 2, 3, 4, 6, 12):
        found = derived(world, monkeypatch=monkeypatch)
        assert found.rows == 12
        assert found.micro_batch * found.accumulation * world == 12


@pytest.mark.parametrize(
    ("free", "parameters", "wanted"),
    [
        (100, 0, 6),  # 85 of 100 bytes, 10 a row: 8 rows, of which 6 divides
        (141.2, 0, 12),
        (141.1, 0, 6),
        (100, 3, 3),  # 16 bytes for each parameter first
        (100, 6, 1),
        (10, 100, 1),  # at least one
    ],
)
def test_memory_is_shared_between_parameters_and_rows(monkeypatch, free, parameters, wanted):
    assert derived(monkeypatch=monkeypatch, free=free, parameters=parameters, memory_per_row=10).micro_batch == wanted


def test_a_cpu_keeps_to_its_caches_and_a_gpu_to_what_pays(monkeypatch):
    assert microbatch.most(CPU, 1024) == 8
    assert microbatch.most(torch.device("cuda"), 1024) == 64
    assert microbatch.most(CPU, 100_000) == 1
    monkeypatch.setattr(microbatch, "CPU_TOKENS", 4 * BLOCK)
    assert derived(monkeypatch=monkeypatch).micro_batch == 4


def test_the_rank_with_the_least_memory_decides(monkeypatch):
    monkeypatch.setattr(Silent, "agree", lambda self, *values: [max(v, -2.0) for v in values])  # another rank has 2
    assert derived(2, monkeypatch=monkeypatch).micro_batch == 2


def test_what_does_not_divide_is_refused_with_what_does():
    with pytest.raises(ConfigError, match=r"GPT2_MICRO_BATCH is 3, no divisor of the 4 .* one of 1 2 4, or 0"):
        split(MICRO_BATCH=3)
    with pytest.raises(ConfigError, match=r"4 sequences per step .* do not divide among 3 processes"):
        split(world=3)
    with pytest.raises(ConfigError, match="do not divide among 8"):
        split(world=8)
    with pytest.raises(ConfigError, match=r"GPT2_TOKENS_PER_STEP is 65, no multiple .* 16; the nearest is 64"):
        split(TOKENS_PER_STEP=65)
    with pytest.raises(ConfigError, match=r"GPT2_MIN_LR is 0\.1, above GPT2_LEARNING_RATE"):
        split(MIN_LR=0.1)


def test_a_cgroup_limits_what_is_free_with_file_caches_counted_as_free(tmp_path):
    root, own = tmp_path / "fs", tmp_path / "own"
    inner = root / "outer" / "inner"
    inner.mkdir(parents=True)
    own.write_text("1:name=x:/elsewhere\n0::/outer/inner\n")
    for folder, limit, used, cache in ((inner, "max", 10, 0), (root / "outer", "1000", 700, 100)):
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text(str(used))
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")
    assert device._cgroup_memory(root, own) == 400
    (root / "outer" / "memory.max").write_text("max")
    assert device._cgroup_memory(root, own) > 1 << 60


def test_processes_share_the_hosts_memory(monkeypatch):
    monkeypatch.setattr(device, "_host_memory", lambda: 1000)
    monkeypatch.setattr(device, "_cgroup_memory", lambda: 800)
    assert device.free_memory(CPU, 4) == 200
    monkeypatch.setattr(device, "_cgroup_memory", lambda: -5)
    assert device.free_memory(CPU, 4) == 0


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA A40", 150),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA RTX A6000", 155),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA RTX A4000", None),
        ("Tesla T4", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_a_gpu_has_its_own_peak_and_an_unknown_one_none(name, tera):
    assert device.peak_of(name) == (tera * 1e12 if tera else None)


def test_there_is_no_honest_peak_for_a_cpu_or_fp32(monkeypatch):
    monkeypatch.setattr(device, "name", lambda where: "NVIDIA H100 80GB HBM3")
    assert device.peak_flops(torch.device("cuda"), "bf16") == 989e12
    assert device.peak_flops(torch.device("cuda"), "fp32") is None
    assert device.peak_flops(CPU, "bf16") is None


def test_mfu_is_the_models_flops_over_the_peak():
    """GPT-2 124M, 462k tokens/s on one H100: 855 MFLOP a token, 40 %."""
    rates = Rates(491520, 855e6, 989e12, 0, 0.0)
    rate, mfu = rates.since_last(10, 10 * 491520 / 462e3)
    assert rate == pytest.approx(462e3)
    assert mfu == pytest.approx(0.3994, abs=1e-4)
    assert rates.since_last(12, 10 * 491520 / 462e3 + 1.0)[0] == pytest.approx(2 * 491520)
    assert Rates(1, 1.0, None, 0, 0.0).since_last(1, 1.0) == (1.0, None)
    assert Rates(1, 1.0, 5.0, 0, 0.0).of(0, 0.0) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("wanted", "processes", "cores", "taken"), [(3, 1, 8, 3), (0, 1, 8, 8), (0, 4, 8, 2), (0, 9, 8, 1)]
)
def test_threads_are_fixed_and_shared_among_processes(monkeypatch, wanted, processes, cores, taken):
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda who: range(cores))
    assert device.set_threads(wanted, processes) == taken == torch.get_num_threads()


def test_the_number_of_threads_is_recorded(tmp_path):
    assert run(tmp_path / "r", budget=Budget("iters", 1), THREADS=2)["threads"] == 2
    assert torch.get_num_threads() == 2


def test_memory_is_this_processs_own_and_no_less_than_it_holds():
    before = device.peak_memory(CPU)
    block = torch.ones(before + (64 << 20), dtype=torch.uint8)  # more than was ever held
    assert device.peak_memory(CPU) >= before + (32 << 20)
    assert block.sum() > 0


def test_forward_time_covers_all_micro_batches_of_the_step(tmp_path):
    run(tmp_path / "r", budget=Budget("iters", 3), LOG_INTERVAL=1)
    for row in rows(tmp_path / "r", "log"):
        step_ms = 1000 * 64 / row["tokens_per_second"]
        assert 0 < row["forward_time_ms"] < step_ms
