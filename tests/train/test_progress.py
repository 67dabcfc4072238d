"""The terminal: one rewritten line where there is a cursor, plain lines elsewhere, never a reason to stop."""

import fcntl
import io
import os
import struct
import subprocess
import sys
import termios

import pytest

from lib.config.errors import RunError
from lib.train.progress import Terminal, duration, eval_text, log_text
from tests.train.harness import ROOT

ROW = {
    "iter": 120,
    "progress": 0.123,
    "train_loss_step": 3.14159,
    "learning_rate": 6e-4,
    "tokens_per_second": 19000.4,
    "mfu": None,
}


@pytest.fixture
def tty():
    """(a stream that is a terminal, a function that gives what was written, a function that sets its width)."""
    main, other = os.openpty()
    attributes = termios.tcgetattr(other)
    attributes[1] &= ~termios.OPOST  # bytes as they are
    termios.tcsetattr(other, termios.TCSANOW, attributes)
    stream = os.fdopen(other, "w")

    def width(columns):
        fcntl.ioctl(main, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def written():
        """All of it, however many pieces the kernel makes of it: up to a mark."""
        os.write(other, b"\0")
        found = b""
        while not found.endswith(b"\0"):
            found += os.read(main, 1 << 16)
        return found[:-1].decode()

    width(200)
    yield stream, written, width
    stream.close()
    os.close(main)


def test_on_a_terminal_a_progress_line_replaces_the_one_before(tty):
    stream, written, _ = tty
    terminal = Terminal(stream, None)
    terminal.progress("a long line")
    terminal.progress("short")
    assert written() == "\ra long line\rshort      "
    terminal.line("stays")
    assert written() == "\rstays\n"
    terminal.progress("again")
    terminal.close()
    assert written() == "\ragain\n"


def test_it_stays_within_the_terminals_width_also_after_a_change(tty):
    stream, written, width = tty
    terminal = Terminal(stream, None)
    width(30)
    terminal.progress("x" * 100)
    assert written() == "\r" + "x" * 29
    width(20)
    terminal.progress("y" * 100)
    assert written() == "\r" + "y" * 19
    terminal.progress("z")
    assert written() == "\rz" + " " * 18


def test_a_terminal_that_does_not_know_its_width_has_eighty_columns(tty):
    stream, written, width = tty
    width(0)
    Terminal(stream, None).progress("x" * 100)
    assert written() == "\r" + "x" * 79


def test_elsewhere_every_line_is_plain(tmp_path):
    stream = io.StringIO()
    terminal = Terminal(stream, tmp_path / "training.log")
    terminal.progress("one")
    terminal.progress("two")
    terminal.line("three")
    terminal.close()
    assert stream.getvalue() == (tmp_path / "training.log").read_text() == "one\ntwo\nthree\n"


def test_the_log_has_whole_lines_also_of_a_terminal(tmp_path, tty):
    stream, _, width = tty
    width(10)
    terminal = Terminal(stream, tmp_path / "training.log")
    terminal.progress("x" * 50)
    terminal.close()
    assert (tmp_path / "training.log").read_text() == "x" * 50 + "\n"


def test_a_quiet_rank_writes_nothing():
    terminal = Terminal(None, None)
    terminal.progress("one")
    terminal.line("two")
    terminal.close()


def test_a_log_that_cannot_be_opened_is_a_run_error(tmp_path):
    with pytest.raises(RunError, match=r"cannot write .*: No such file"):
        Terminal(None, tmp_path / "nowhere" / "training.log")


SPEAK = "from lib.train.progress import Terminal; import sys; t = Terminal(sys.stdout, None)\n"


@pytest.mark.parametrize("end", ["closed pipe", "full disk", "no stdout"])
def test_when_nobody_can_read_the_program_goes_on_and_ends_as_it_would(end):
    code = SPEAK + "for n in range(1000): t.line('x' * 100)\nt.close()\nprint('more')\nsys.exit(75)"
    reader, writer = os.pipe()
    os.close(reader)
    out = {"closed pipe": writer, "full disk": os.open("/dev/full", os.O_WRONLY), "no stdout": writer}[end]
    command = [sys.executable, "-c", code]
    if end == "no stdout":
        command = ["sh", "-c", 'exec "$0" "$@" >&-', *command]
    done = subprocess.run(
        command, stdout=out, stderr=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (75, b"")


def test_a_log_line_says_loss_speed_and_time_left_first():
    assert log_text(ROW, 65.0) == ("iter    120  loss 3.1416  19,000 tok/s  1m05s left   12.3 %  lr 6.00e-04")
    assert log_text({**ROW, "mfu": 0.4567}, 1.0).endswith("lr 6.00e-04  mfu 45.7 %")
    assert len(log_text(ROW, 4000.0)) < 80


def test_an_evaluation_line_says_both_losses():
    row = {"val_loss": 1.0, "train_loss": 2.0, "val_perplexity": 2.718, "bits_per_byte": 0.5, "best_val_loss": 0.9}
    assert eval_text({**ROW, **row}) == (
        "iter    120  val loss 1.0000  train loss 2.0000  perplexity 2.72  0.5000 bits/byte  best 0.9000"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (4.2, "4s"), (59.6, "1m00s"), (65, "1m05s"), (3725, "1h02m"), (float("nan"), "?")]
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


def test_a_terminal_that_goes_away_is_no_reason_to_stop():
    main, other = os.openpty()
    terminal = Terminal(os.fdopen(other, "w"), None)
    terminal.progress("one")
    os.close(main)
    for _ in range(2):
        terminal.progress("two")
        terminal.line("three")
    terminal.close()
