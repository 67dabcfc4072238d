"""Validation against a slow float64 oracle; the same number however it is computed."""

import math

import numpy as np
import pytest
import torch

from lib.train.distributed import World
from lib.train.evaluation import Evaluator, evaluator, perplexity
from tests.train.harness import BLOCK, Corpus, build, corpus, rows, run, values

ALONE = World(0, 1, 1, torch.device("cpu"))


def oracle(model, tokens, starts):
    """Mean nats per target over windows, one window and one target at a time, in float64."""
    model = build(values()).double()
    total, count = 0.0, 0
    for start in starts:
        window = torch.from_numpy(tokens[start : start + BLOCK + 1].astype(np.int64))
        scores = model(window[None, :-1])[0].log_softmax(-1)
        for position in range(BLOCK):
            total -= scores[position, window[position + 1]].item()
            count += 1
    return total / count


def made(micro_batch=2, windows=0, data=None, world=ALONE):
    model = build(values())
    return evaluator(model, model, world, "fp32", BLOCK, micro_batch, data or corpus(), windows)


def never():
    return False


@torch.no_grad()
def test_it_is_the_mean_over_all_targets_of_all_windows():
    data = corpus()
    found = made().run(never)
    starts = range(0, (len(data.val) - 1) // BLOCK * BLOCK, BLOCK)
    assert found["val_loss"] == pytest.approx(oracle(None, data.val, starts), abs=1e-6)
    assert found["val_perplexity"] == pytest.approx(math.exp(found["val_loss"]))


def test_train_loss_is_the_same_measure_on_fixed_windows_of_the_training_split():
    data = corpus()
    same = made(data=Corpus(data.train, data.train)).run(never)
    fewer = made(data=Corpus(data.train, data.train), windows=20).run(never)
    assert fewer["train_loss"] == fewer["val_loss"]  # twenty windows, evenly spread, of the same split
    assert same["train_loss"] == fewer["train_loss"]


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 8, 64])
def test_the_number_of_rows_in_a_forward_pass_does_not_matter(micro_batch):
    wanted, found = made(2).run(never), made(micro_batch).run(never)
    assert found == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_number_of_ranks_changes_no_bit(size):
    """Each rank's table by itself, then added as the ranks would."""
    tables = []

    class One(World):
        def gather(self, tensor):
            tables.append(tensor.clone())
            return [tensor]

    for rank in range(size):
        made(world=One(rank, size, size, torch.device("cpu"))).run(never)
    val = torch.stack(tables[::2]).sum(dim=0)
    assert float(val.sum()) / (24 * BLOCK) == made().run(never)["val_loss"]
    assert all((table != 0).any() for table in tables[::2])


def test_bits_per_byte_by_hand():
    """Four windows of sixteen targets; a token weighs its number squared modulo thirteen bytes."""
    data = corpus()
    found = made(windows=4).run(never)
    bytes_, starts = 0, [i * 24 // 4 * BLOCK for i in range(4)]
    for start in starts:
        for token in data.val[start + 1 : start + 1 + BLOCK]:
            bytes_ += int(token) ** 2 % 13
    nats = found["val_loss"] * 4 * BLOCK
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / bytes_)


def test_targets_without_bytes_have_no_bits_per_byte_and_the_files_stay_strict_json(tmp_path):
    data = corpus()
    summary = run(tmp_path / "r", data=Corpus(data.train, data.val, token_bytes=np.zeros(64, np.uint8)))
    assert math.isnan(summary["bits_per_byte"])
    assert rows(tmp_path / "r", "eval")[0]["bits_per_byte"] is None
    assert rows(tmp_path / "r", "eval")[0]["non_finite"] == ["bits_per_byte"]


def test_many_bytes_do_not_overflow_a_small_integer_type():
    data = corpus()
    heavy = made(data=Corpus(data.train, data.val, token_bytes=np.full(64, 255, np.uint8)))
    assert heavy.target_bytes == 255 * heavy.windows * BLOCK


@pytest.mark.parametrize(
    ("wanted", "windows", "reduced"), [(0, 24, False), (6, 6, True), (24, 24, False), (999, 24, False)]
)
def test_fewer_windows_than_the_split_has_are_flagged(tmp_path, wanted, windows, reduced):
    summary = run(tmp_path / "r", EVAL_WINDOWS=wanted)
    assert (summary["eval_windows"], summary["eval_reduced"]) == (windows, reduced)


def test_dropout_is_off_in_evaluation_and_on_again_behind_it():
    model = build(values(), dropout=0.5)
    under = evaluator(model, model, ALONE, "fp32", BLOCK, 2, corpus(), 0)
    assert under.run(never) == under.run(never)
    assert model.training
    assert under.run(never)["val_loss"] == made().run(never)["val_loss"]


def test_when_told_to_stop_it_gives_up_between_two_batches():
    asked = []
    assert made().run(lambda: asked.append(1) or len(asked) > 3) is None
    assert len(asked) == 4


def test_bf16_is_near_fp32():
    model = build(values())
    half = evaluator(model, model, ALONE, "bf16", BLOCK, 2, corpus(), 0).run(never)
    full = made().run(never)
    assert half["val_loss"] != full["val_loss"]
    assert half["val_loss"] == pytest.approx(full["val_loss"], abs=2e-2)


def test_a_perplexity_beyond_floating_point_is_infinite():
    assert perplexity(1e4) == math.inf
    assert perplexity(0.0) == 1.0


def test_every_forward_pass_has_the_same_shape():
    shapes = set()
    model = build(values())

    def forward(x, y, reduction):
        shapes.add((tuple(x.shape), tuple(y.shape), x.is_contiguous(), y.is_contiguous()))
        return model(x, y, reduction=reduction)

    under = evaluator(model, forward, ALONE, "fp32", BLOCK, 7, corpus(), 0)
    under.rehearse()
    under.run(never)
    assert shapes == {((7, BLOCK), (7, BLOCK), True, True)}
    assert isinstance(under, Evaluator)
