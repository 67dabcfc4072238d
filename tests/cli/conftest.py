"""Commands as a user types them, with the running interpreter as the active environment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Commands:
    """Runs make and the training program; nothing of this process's settings leaks into them."""

    @staticmethod
    def environment(**changes: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("GPT2_", "MAKE", "CONFIG_DIR", "MATRIX_"))}
        prefix = Path(sys.executable).parent
        return {**kept, "VIRTUAL_ENV": str(prefix.parent), "PATH": f"{prefix}:{kept['PATH']}", **changes}

    def make(self, *words: str, timeout: int = 300, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", *words], cwd=ROOT, env=self.environment(**changes), capture_output=True, text=True, timeout=timeout
        )

    def start(self, *words: str, **changes: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["make", *words],
            cwd=ROOT,
            env=self.environment(**changes),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def train(self, *words: str, cwd: Path = ROOT, **changes: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, str(ROOT / "gpt2" / "train_ra_mla.py"), *words]
        return subprocess.run(
            program, cwd=cwd, env=self.environment(**changes), capture_output=True, text=True, timeout=300
        )


@pytest.fixture(scope="session")
def commands() -> Commands:
    """make(...), start(...) in the background, train(...)."""
    return Commands()


@pytest.fixture
def folder(tmp_path: Path, commands: Commands) -> Path:
    """A folder of its own with the quickstart's .config."""
    done = commands.make("defconfig-gpt2-ra-quickstart", f"O={tmp_path}")
    assert done.returncode == 0, done.stderr
    return tmp_path
