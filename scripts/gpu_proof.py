"""Proof that the GPU path lives: the tests, then arms at 124M, compiled, bf16; tokens/s, MFU, memory, ratios as JSON.

python scripts/gpu_proof.py --out docs/benchmarks --ranks gpt2.tiktoken --seconds 120 --steps "V0 V1"
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT = (
    "tokens_per_second",
    "mfu",
    "peak_memory_bytes",
    "parameters",
    "flops_per_token",
    "iterations",
    "tokens",
    "seconds",
)
KEPT += (
    "wall_seconds",
    "compile_seconds",
    "val_loss",
    "bits_per_byte",
    "micro_batch",
    "world_size",
    "device",
    "forward_time_ms",
)


def main() -> int:
    """Run everything; the exit code is that of the worst part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and the logs")
    parser.add_argument("--ranks", type=Path, required=True, help="GPT-2's rank file, tiktoken's format")
    parser.add_argument("--seconds", type=int, default=120, help="budget of each run")
    parser.add_argument("--steps", default="V0 V1", help="arms, the first is the reference")
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--tokens-per-step", type=int, default=491520)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, object] = {"hardware": hardware(), "command": " ".join(sys.argv), "date": time.strftime("%F")}
    worst = 0
    if not given.skip_tests:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "tests/gpu", "tests/equivalence", "tests/test_ra.py"],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        (given.out / "tests.log").write_text(done.stdout + done.stderr)
        report["tests"] = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else f"exit {done.returncode}"
        worst = done.returncode
        print("tests:", report["tests"], flush=True)
    runs: dict[str, dict[str, object]] = {}
    work = Path(os.environ.get("TMPDIR", "/tmp")) / "gpu-proof"
    for step in given.steps.split():
        runs[step] = train(step, work, given)
        print(step, json.dumps(runs[step]), flush=True)
        worst = worst or int(str(runs[step].get("exit", 0)))
    report["runs"] = runs
    reference = runs[given.steps.split()[0]].get("tokens_per_second")
    report["speed_against_reference"] = {
        step: round(float(str(run["tokens_per_second"])) / float(str(reference)), 4)
        for step, run in runs.items()
        if reference and run.get("tokens_per_second")
    }
    (given.out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["speed_against_reference"]))
    return worst


def train(step: str, work: Path, given: argparse.Namespace) -> dict[str, object]:
    """One run at 124M on the GPU; what its metrics.json says, or its exit code."""
    words = [sys.executable, "gpt2/train_ra_mla.py", "--ra-mla-ablation-step", step, "--output", str(work)]
    words += ["--device", "cuda", "--ngpus", "1", "--max-time", str(given.seconds), "--dropout", "0.0"]
    words += ["--data-dir", str(work / "data"), "--bpe-ranks", str(given.ranks.resolve())]
    words += ["--tokens-per-step", str(given.tokens_per_step), "--log-interval", "10", "--eval-interval", "1000000"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    (given.out / f"{step}.log").write_text(done.stdout[-200_000:] + done.stderr[-200_000:])
    found = list(work.glob(f"test_{step}_*/metrics.json"))
    if done.returncode or not found:
        return {"exit": done.returncode or 1, "stderr": done.stderr[-600:]}
    metrics = json.loads(found[0].read_text())
    return {name: metrics[name] for name in KEPT if name in metrics}


def hardware() -> dict[str, object]:
    """The device and the versions that the numbers belong to."""
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "python": sys.version.split()[0]}


if __name__ == "__main__":
    sys.exit(main())
