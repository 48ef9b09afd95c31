"""No accident loses work: kills and failures at any call, limited file systems, signals, readers that leave."""

import errno
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt.run import Run
from gpt.system.interrupts import ECHO
from tests.support import ROOT
from tests.support.processes import read_terminal
from tests.support.runs import logged, weights

MODEL = ("--vocab-size", 60, "--dim", 8, "--heads", 2, "--ff", 8, "--layers", 1, "--seq", 8, "--batch", 2)
TEXT = "the cat sat on the mat and saw a dog .\n" * 60
ENDLESS = ("--steps", 3, "--accumulate", 2**31 - 1)
WALL_CLOCK = ("time", "ms", "tokens_per_second")


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def start(hipgpt, text):
    """Start `hipgpt train`, and return at once."""

    def begin(*arguments, **kwargs) -> subprocess.Popen:
        flags = ("--data-path", text, *MODEL, "--device", "cpu", "--run-name", "r", *arguments)
        return hipgpt.start("train", *flags, **kwargs)

    return begin


@pytest.fixture
def train(hipgpt, text):
    """Train the run r; with `train.once` another run, once for all tests."""
    flags = ("train", "--data-path", text, *MODEL, "--device", "cpu")

    def run(*arguments, name="r", **kwargs):
        return hipgpt(*flags, "--run-name", name, *arguments, **kwargs)

    run.once = lambda *arguments, name: hipgpt.once(*flags, *arguments, name=name)
    return run


def wait_for(process: subprocess.Popen, beginning: str) -> None:
    for line in process.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError(f"no line began with {beginning}: {process.stderr.read()}")


def wait_until_at_work(process: subprocess.Popen, seconds: float = 0.5) -> None:
    """Wait until a process has computed for so many seconds from now on. So it is far in its work on any machine."""
    stat = Path(f"/proc/{process.pid}/stat")
    if not stat.exists():
        time.sleep(seconds)
        return

    def ticks() -> int:
        return int(stat.read_text().rpartition(")")[2].split()[11])

    end = ticks() + seconds * os.sysconf("SC_CLK_TCK")
    while ticks() < end:
        assert process.poll() is None
        time.sleep(0.02)


def logged_but_for_times(run: str) -> list[dict]:
    return [{key: value for key, value in line.items() if key not in WALL_CLOCK} for line in logged(run)]


# ---- kills and failures at every call -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_command_that_is_killed_or_fails_at_any_call_goes_on_to_the_same_end(shim):
    """A sample of all calls; see docs/testing.md."""
    command = [sys.executable, "-m", "tests.campaign", "--kind", "kill", "--kind", "fault", "--trials", "12"]
    result = subprocess.run([*command, "--jobs", "1"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.findall(r"^(kill|fault) +12 +0 ", result.stdout, re.MULTILINE) == ["kill", "fault"]


# ---- file systems that lack something -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "answers", "note"),
    [
        ("symlink", (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP), "has no links"),
        ("chmod", (errno.EPERM,), None),
        ("utime", (errno.EPERM,), None),
        ("fsyncdir", (errno.EINVAL, errno.EIO), "cannot be synced to its disk"),
        ("fsync", (errno.EINVAL,), "cannot be synced to its disk"),
        ("flock", (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP), "has no locks"),
        ("mmap", (errno.ENODEV,), "cannot be mapped"),
    ],
)
def test_training_continues_with_one_note_if_a_file_system_lacks_something(train, hipgpt, shim, call, answers, note):
    for number in answers:
        shutil.rmtree("checkpoints/r", ignore_errors=True)
        lacking = shim.Order((call,), 1, str(-number))
        for steps in (("--steps", 2, "--schedule", "constant"), ("--steps", 4, "--resume")):
            result = train(*steps, order=lacking)
            assert result.stderr.count("Note: ") == result.stderr.count("\n") == (note is not None), result.stderr
            assert note is None or note in result.stderr
        hipgpt("generate", "--run-name", "r", "--prompt", "the", order=lacking)
        latest = json.loads(Path("checkpoints/r/latest_config.json").read_text())
        assert latest["checkpoint"] == {"latest": "r_step4.safetensors", "step": 4}
        assert Path("checkpoints/r/latest_config.json").is_symlink() == (call != "symlink")
        assert os.path.lexists("checkpoints/r/latest_checkpoint.safetensors") == (call != "symlink")
        branch = ("--ckpt", "checkpoints/r/latest_checkpoint.safetensors", "--run-name", f"branch{number}")
        assert "steps 5 to 6" in hipgpt("train", *branch, "--steps", 2, order=lacking).stdout


# ---- signals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_a_signal_is_answered_at_once_and_a_step_that_takes_long_is_dropped(start, hipgpt, name):
    number = getattr(signal, name)
    process = start(*ENDLESS)
    wait_for(process, "Disk:")
    wait_until_at_work(process)
    process.send_signal(number)
    wait_for(process, "Finishing step 1, then saving; again to stop at once")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Stopped at step 0, saved. Go on: hipgpt train --run-name r --resume" in out
    hipgpt("train", "--run-name", "r", "--resume", "--steps", 1, "--accumulate", 1)


def test_a_dropped_step_leaves_the_state_of_the_last_finished_one(start, train, hipgpt):
    train("--steps", 2, "--schedule", "constant", name="whole")
    train("--steps", 2, "--schedule", "constant")
    process = start("--resume", "--steps", 4, "--accumulate", 10**9)
    wait_for(process, "Disk:")
    wait_until_at_work(process)
    process.send_signal(signal.SIGTERM)
    assert "Stopped at step 2, saved" in process.communicate(timeout=60)[0]
    assert weights("r", 2) == weights("whole", 2)
    for run in ("r", "whole"):
        hipgpt("train", "--run-name", run, "--resume", "--steps", 4, "--accumulate", 1)
    assert weights("r", 4) == weights("whole", 4)


LARGE_PRODUCT = """
import time
import numpy as np
from gpt.system import interrupts
interrupts.begin()
a = np.ones((6000, 6000), np.float32)
with interrupts.raised(), interrupts.deferred(lambda: print("first", flush=True), lambda: "second"):
    print("ready", flush=True)
    for _ in range(1000):
        np.matmul(a, a)
        print("a product", flush=True)
"""


def test_two_presses_inside_one_call_of_numpys_are_two(hipgpt):
    process = subprocess.Popen(
        [sys.executable, "-c", LARGE_PRODUCT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**hipgpt.environment, "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    wait_for(process, "ready")
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    wait_for(process, "first")
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (130, "", "second\n"), "a product takes seconds"


def test_sigterm_twice_at_the_same_moment_as_timeout_sends_it_is_one_request(start):
    process = start("--steps", 10**6, "--ckpt-every", 0)
    wait_for(process, "At ")
    first = time.monotonic()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    apart = time.monotonic() - first
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 143
    if apart > ECHO / 2:
        pytest.skip("the machine let this test wait between the two signals")
    assert "saved. Go on" in out


def test_a_second_press_leaves_a_terminal_with_its_cursor(hipgpt, text):
    flags = ("--data-path", text, *MODEL, "--device", "cpu", "--run-name", "r", *ENDLESS)
    main, side = pty.openpty()
    process = hipgpt.start("train", *flags, stdin=side, stdout=side, stderr=side)
    os.close(side)
    shown, sent = b"", 0
    while data := read_terminal(main):
        shown += data
        if not sent and b"Disk:" in shown:
            wait_until_at_work(process)
            process.send_signal(signal.SIGINT)
            sent = 1
        elif sent == 1 and b"again to stop at once" in shown:
            process.send_signal(signal.SIGINT)
            sent = 2
    os.close(main)
    assert process.wait(timeout=60) == 130
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l") > 0, "shown after it was hidden"
    assert b"Stopped at once. Nothing was saved" in shown


def test_a_second_press_names_the_command_that_goes_on_in_a_directory_of_runs_of_ones_own(start, train):
    train("--steps", 1, "--runs-dir", "there")
    process = start("--runs-dir", "there", "--resume", "--steps", 4, "--accumulate", 10**9)
    wait_for(process, "Disk:")
    wait_until_at_work(process)
    process.send_signal(signal.SIGINT)
    wait_for(process, "Finishing step 2")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert error == "Stopped at once. Go on from step 1: hipgpt train --run-name r --runs-dir there --resume\n"


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(start, name):
    number = getattr(signal, name)
    process = start("--steps", 10**6, "--ckpt-every", 0, preexec_fn=lambda: signal.signal(number, signal.SIG_IGN))
    wait_for(process, "At ")
    process.send_signal(number)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert "Finishing" in process.communicate(timeout=30)[0]
    assert process.returncode == 143


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_while_a_text_is_tokenized_ends_quietly_and_leaves_no_temporary_file(hipgpt, tmp_path, name, status):
    Path("long.txt").write_text(" ".join(f"{number:x}" for number in range(400_000)))
    process = hipgpt.start("tokenize", "--run-name", "t", "--data-path", "long.txt")
    while not Path("checkpoints/t/.tokenizing").exists():
        time.sleep(0.01)
    process.send_signal(getattr(signal, name))
    out, error = process.communicate(timeout=30)
    assert (out, error.strip()) == ("", "Interrupted")
    assert process.returncode == status
    assert not Path("checkpoints/t").exists()


# ---- what is printed and logged -----------------------------------------------------------------------------------


def test_a_pipe_that_nobody_reads_any_more_stops_a_run_as_ctrl_c_does(start, hipgpt):
    process = start("--steps", 10**6, "--log-every", 20, "--ckpt-every", 0)
    wait_for(process, "[Step 20]")
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(timeout=30) == 128 + signal.SIGPIPE
    assert re.fullmatch(r"Stopped at step \d+, saved. Go on: hipgpt train --run-name r --resume\n", error)
    assert Run("r").steps()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_log_on_a_full_disk_costs_a_note_and_nothing_else(train, start):
    train("--steps", 5, name="whole")
    with open("/dev/full", "w") as full:
        process = start("--steps", 5, stdout=full)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 0
    assert error == "Note: the output cannot be written (No space left on device): going on\n"
    assert weights("r", 5) == weights("whole", 5)


def test_a_metrics_file_that_cannot_be_written_for_a_while_has_all_its_lines_in_the_end(tmp_path, capfd):
    from gpt.history import History

    run = Run("r", tmp_path)
    run.path.mkdir()
    history = History(run, 0, tokens_per_step=8, train_tokens=100)
    history.record(1, seconds=1.0, loss=1.0)
    away = run.path / "away"
    run.metrics_path.rename(away)
    run.metrics_path.mkdir()  # which nobody, not even root, can write a line to
    history.record(2, seconds=2.0, loss=1.0)
    history.record(3, seconds=3.0, loss=1.0)
    run.metrics_path.rmdir()
    away.rename(run.metrics_path)
    history.sync()
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]
    assert capfd.readouterr().err.count("metrics.jsonl cannot be written") <= 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("line", ["[Step 20] Loss", "[Step 30] Validation", "[Step 45] Sample"])
def test_the_log_of_a_resumed_run_is_that_of_an_uninterrupted_one(train, start, hipgpt, number, line):
    """Evaluations and samples that the signal cut short are repeated later, and the stop itself adds no line."""
    steps = ("--steps", 60, "--log-every", 10, "--eval-every", 15, "--sample-every", 15, "--ckpt-every", 10)
    train.once(*steps, name="whole")
    process = start(*steps)
    wait_for(process, line)
    process.send_signal(number)
    process.communicate(timeout=60)
    if process.returncode:  # on a busy machine it may have reached its end before the signal came
        with open("checkpoints/r/metrics.jsonl", "a") as file:
            file.write('{"step": 44, "lo')  # as after a power cut
    hipgpt("train", "--run-name", "r", "--resume")
    assert logged_but_for_times("r") == logged_but_for_times("whole")
    assert weights("r", 60) == weights("whole", 60)


@pytest.mark.parametrize("key", ["val_loss", "sample"])
def test_a_result_of_the_last_step_that_a_signal_skipped_is_made_up_for(train, hipgpt, key):
    train("--steps", 6, "--sample-every", 6, name="whole")
    train("--steps", 6, "--sample-every", 6)
    path = Path("checkpoints/r/metrics.jsonl")
    lines = path.read_text().splitlines(True)
    cut = next(number for number, line in enumerate(lines) if key in line and '"step": 6,' in line)
    path.write_text("".join(lines[:cut]))
    assert "is done" not in hipgpt("train", "--run-name", "r", "--resume").stdout
    assert logged_but_for_times("r") == logged_but_for_times("whole")
    assert "Run r is done" in hipgpt("train", "--run-name", "r", "--resume").stdout


# ---- several processes --------------------------------------------------------------------------------------------


def test_readers_beside_a_trainer_that_prunes_find_a_whole_checkpoint(start, hipgpt):
    process = start("--steps", 10**6, "--ckpt-every", 1, "--keep-last", 1, "--eval-every", 3)
    wait_for(process, "At ")
    for number in range(3):
        for best in ((), ("--best",)):
            hipgpt("generate", "--run-name", "r", "--prompt", "the", "--num-tokens", 2, *best)
        hipgpt("export", "--run-name", "r", "--out", f"out{number}")
        assert "/1000000" in hipgpt("runs").stdout
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_of_two_trainers_of_one_run_the_second_looks_again_once_it_has_the_lock(train, text, monkeypatch):
    """This process found no checkpoint; while it was starting, another process trained the run."""
    from click.testing import CliRunner

    from gpt import cli

    lock = Run.lock

    def late(run):
        monkeypatch.setattr(Run, "lock", lock)
        train("--steps", 2)
        return lock(run)

    monkeypatch.setattr(Run, "lock", late)
    flags = ("train", "--data-path", text, *MODEL, "--device", "cpu", "--run-name", "r", "--steps", 2)
    result = CliRunner().invoke(cli.main, [str(flag) for flag in flags])
    assert result.exit_code == 2
    assert "already has checkpoints" in result.output
