"""Signals: a closed terminal stops training as Ctrl-C does, and which second signal ends a command at once."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

if os.name == "nt":
    pytest.skip("Windows has no pseudo-terminals", allow_module_level=True)

import fcntl
import pty
import termios

from gpt.system import interrupts
from tests.support.processes import read_terminal

TEXT = "the cat sat on the mat and saw a dog .\n" * 60
MODEL = ("--vocab-size", 60, "--dim", 8, "--heads", 2, "--ff", 8, "--layers", 1, "--seq", 8, "--batch", 2)
FLAGS = ("--data-path", "text.txt", *MODEL, "--device", "cpu", "--schedule", "constant", "--warmup-steps", 0)
FLAGS += ("--eval-every", 0)


def weights(name: str, step: int) -> bytes:
    return Path(f"checkpoints/{name}/{name}_step{step}.safetensors").read_bytes()


def take_terminal() -> None:
    """Make standard input the controlling terminal of this process, which leads its session."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_terminal_that_is_closed_stops_training_which_is_saved_and_goes_on(hipgpt, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    main, side = pty.openpty()
    streams = {"stdin": side, "stdout": side, "stderr": side}
    endless = ("--steps", 10**6, "--log-every", 1, "--ckpt-every", 0)
    process = hipgpt.start(
        "train", *FLAGS, *endless, "--run-name", "r", **streams, start_new_session=True, preexec_fn=take_terminal
    )
    os.close(side)
    shown = b""
    while b"[Step 3]" not in shown and (data := read_terminal(main)):
        shown += data
    os.close(main)  # the kernel sends SIGHUP to the session
    assert process.wait(timeout=30) == 128 + signal.SIGHUP, shown.decode(errors="replace")
    (saved,) = (int(path.stem.rpartition("step")[2]) for path in Path("checkpoints/r").glob("r_step*[0-9].safetensors"))
    assert saved >= 3
    hipgpt("train", *FLAGS, "--steps", saved, "--run-name", "whole")
    assert weights("r", saved) == weights("whole", saved)
    for name in ("r", "whole"):
        hipgpt("train", "--run-name", name, "--resume", "--steps", saved + 2)
    assert weights("r", saved + 2) == weights("whole", saved + 2)


@pytest.mark.parametrize(
    ("first", "second", "ends"),
    [
        ("SIGINT", "SIGINT", True),
        ("SIGINT", "SIGTERM", True),
        ("SIGTERM", "SIGINT", True),
        ("SIGTERM", "SIGTERM", True),
        ("SIGHUP", "SIGINT", True),
        ("SIGHUP", "SIGTERM", False),  # the request that the warning announced
        ("SIGUSR1", "SIGTERM", False),
        ("SIGHUP", "SIGHUP", False),  # one from the kernel, and one from the shell
        ("SIGINT", "SIGHUP", False),
        ("SIGTERM", "SIGUSR2", False),
    ],
)
def test_a_second_signal_ends_a_command_at_once_only_if_it_insists(first, second, ends):
    number = getattr(signal, second)
    assert interrupts._insists(number, now=9.0, first=getattr(signal, first), since=8.0) == ends


def test_the_request_is_announced_before_the_work_ends_however_short_it_is():
    """The thread that listens must wait half a second for the interpreter, and the work ends in microseconds."""
    work = """
import os, signal, sys
from gpt.system import interrupts
interrupts.begin()
with interrupts.raised():
    sys.setswitchinterval(0.5)
    with interrupts.deferred(lambda: print("announced"), lambda: "") as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        while stop.received is None:
            pass
    print("ended", stop.received)
"""
    said = subprocess.run([sys.executable, "-c", work], capture_output=True, text=True, timeout=60, check=True).stdout
    assert said.split() == ["announced", "ended", "15"]


def test_sigterm_that_comes_twice_at_the_same_moment_is_one_request():
    assert not interrupts._insists(signal.SIGTERM, now=8.01, first=signal.SIGTERM, since=8.0)


def test_an_echo_that_comes_while_the_request_is_announced_is_one_however_long_that_takes(monkeypatch):
    """A busy machine may take long to print a line, and the thread that listens reads the second signal after it."""
    now, ended = 8.0, []
    monkeypatch.setattr(interrupts, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(interrupts, "_first", None)
    monkeypatch.setattr(interrupts, "_nudge_after", lambda seconds: None)
    monkeypatch.setattr(interrupts, "_end_at_once", ended.append)

    def announce() -> None:
        nonlocal now
        now += 10 * interrupts.ECHO

    with interrupts.deferred(announce, lambda: ""):
        interrupts._receive(signal.SIGTERM)
        interrupts._receive(signal.SIGTERM)
        assert ended == []
        now += 2 * interrupts.ECHO
        interrupts._receive(signal.SIGTERM)
        assert ended == [signal.SIGTERM]


def test_the_echo_of_a_request_that_work_has_answered_ends_nothing(monkeypatch):
    """Small work may be saved before timeout(1) sends SIGTERM to the group, too; the command must still say so."""
    now = 8.0
    monkeypatch.setattr(interrupts, "time", SimpleNamespace(monotonic=lambda: now))
    for name, value in {"_first": (signal.SIGTERM, now), "_is_listening": True, "_ends_at_once": False}.items():
        monkeypatch.setattr(interrupts, name, value)
    monkeypatch.setattr(interrupts, "_is_answered", False)
    with interrupts.deferred(lambda: None, lambda: "") as work:
        work.receive(signal.SIGTERM)
    now += interrupts.ECHO / 2
    interrupts._handle(signal.SIGTERM, None)
    now += interrupts.ECHO
    with pytest.raises(interrupts.Interrupted):
        interrupts._handle(signal.SIGTERM, None)


def test_work_is_dropped_only_inside_droppable_and_only_when_its_time_is_over(monkeypatch):
    now = 8.0
    monkeypatch.setattr(interrupts, "time", SimpleNamespace(monotonic=lambda: now))
    work = interrupts.Deferred(lambda: None, lambda: "")
    with work.droppable():
        work.receive(signal.SIGINT)
        work.receive(signal.SIGTERM)
        now += interrupts.GRACE - 0.01
        work.drop_if_due()
        now += 0.02
        with pytest.raises(interrupts.Dropped):
            work.drop_if_due()
    assert work.received == signal.SIGINT
    work.drop_if_due()
    with pytest.raises(interrupts.Dropped), work.droppable():
        raise AssertionError("begun although it is due")
