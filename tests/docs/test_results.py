"""Pictures of results are what the committed numbers say."""

from pathlib import Path

import pytest

from scripts import draw_results

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted((ROOT / "docs" / "results").glob("*.json"))


@pytest.mark.parametrize("numbers", RESULTS, ids=lambda path: path.stem)
def test_a_picture_of_results_is_drawn_from_the_committed_numbers(numbers):
    picture = ROOT / "docs" / "images" / f"{numbers.stem}.svg"
    assert draw_results.main(["--check", str(numbers), str(picture)]) == 0


def test_ticks_are_round_and_on_both_sides_of_zero():
    assert draw_results.ticks(0.0056) == [-0.004, -0.002, 0.0, 0.002, 0.004]
    assert draw_results.ticks(1.0) == [-1.0, -0.5, 0.0, 0.5, 1.0]
