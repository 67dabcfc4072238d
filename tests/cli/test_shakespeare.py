"""The loss that anybody can check: characters of Shakespeare at nanoGPT's CPU settings."""

import json
import statistics

import pytest

BAR = 1.92  # nats per character over the whole validation split; nanoGPT's own final model has 1.898


@pytest.mark.slow
def test_v0_learns_shakespeare_as_well_as_nanogpt(commands, tmp_path, shared_data):
    words = [f"O={tmp_path}", f"DATA_PATH={shared_data / 'tinyshakespeare.txt'}", "STEPS=V0", "PARALLEL_RUNS=2"]
    assert commands.make("defconfig-gpt2-ra-shakespeare", f"O={tmp_path}").returncode == 0
    done = commands.make(*words, timeout=1500)
    assert done.returncode == 0, done.stderr
    runs = [json.loads(p.read_text()) for p in tmp_path.glob("test_matrix_results_shakespeare/test_V0_*/metrics.json")]
    assert len(runs) == 3
    assert all(r["iterations"] == 2000 and not r["eval_reduced"] for r in runs)
    assert statistics.fmean(r["val_loss"] for r in runs) <= BAR
