"""A command in a fork is as good as a real process: it prints, computes and ends as that does."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

MODEL = ("--vocab-size", 60, "--dim", 8, "--heads", 2, "--ff", 8, "--layers", 1, "--seq", 8, "--batch", 2)


@pytest.fixture(autouse=True)
def _forks(forks):
    if forks is None:
        pytest.skip("commands run as real processes on this system")


@pytest.fixture
def both(hipgpt):
    """Runs a command in a fork and as a real process; gives the standard output and error of each."""

    def run(*arguments, status=0) -> list[tuple[str, str]]:
        results = [hipgpt(*arguments, status=status, **kwargs) for kwargs in ({}, {"environment": hipgpt.environment})]
        assert "gpt.cli" in str(results[1].args), "the second has to be a real process"
        return [(result.stdout, result.stderr) for result in results]

    return run


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("--version",), 0),
        (("train", "--help"), 0),
        ((), 0),
        (("train", "--steps", "many"), 2),
        (("generate", "--run-name", "näme", "--prompt", "x"), 2),
        (("generate", "--run-name", b"\xff", "--prompt", "x"), 2),
        (("tokenize", "--data-path", "absent.txt", "--run-name", "r"), 2),
    ],
)
def test_a_fork_prints_what_the_real_command_prints_and_ends_as_it_does(both, arguments, status):
    fork, real = both(*arguments, status=status)
    assert fork == real
    assert fork[0] or fork[1]


def test_a_fork_trains_the_weights_that_the_real_command_trains(both, hipgpt):
    Path("text.txt").write_text("the cat sat on the mat and saw a dog .\n" * 60)
    train = ("train", "--data-path", "text.txt", *MODEL, "--device", "cpu", "--steps", 2)
    hipgpt(*train, "--run-name", "fork")
    hipgpt(*train, "--run-name", "real", environment=hipgpt.environment)
    fork, real = (Path(f"checkpoints/{name}/{name}_step2.safetensors").read_bytes() for name in ("fork", "real"))
    assert fork == real


def test_a_fork_sees_no_variable_of_an_earlier_one(forks, tmp_path):
    usual = {**os.environ, "COLUMNS": "100"}
    (tmp_path / "elsewhere" / "r").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    other = {**usual, "HIPGPT_RUNS_DIR": str(tmp_path / "elsewhere")}
    command = ["generate", "--run-name", "absent", "--prompt", "x"]
    said = [forks.run(command, tmp_path / "here", environment, 60).stderr for environment in (other, usual)]
    assert "elsewhere" in said[0]
    assert "elsewhere" not in said[1]


def test_a_fork_that_takes_too_long_is_killed_and_the_next_one_runs(forks, tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat and saw a dog .\n" * 60)
    endless = ["train", "--run-name", "r", "--data-path", "text.txt", *map(str, MODEL), "--steps", "1000000"]
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        forks.run(endless, tmp_path, os.environ, timeout=1)
    assert time.monotonic() - began < 60
    assert forks.run(["--version"], tmp_path, os.environ, timeout=60).returncode == 0


def test_a_fork_that_was_started_prints_as_it_goes_and_can_be_signalled(hipgpt):
    Path("text.txt").write_text("the cat sat on the mat and saw a dog .\n" * 60)
    train = ("train", "--data-path", "text.txt", *MODEL, "--run-name", "r", "--steps", 10**6, "--ckpt-every", 0)
    process = hipgpt.start(*train)
    assert next(line for line in process.stdout if line.startswith("[Step 50]"))
    assert process.poll() is None
    assert "--prompt" in hipgpt("generate", "--help").stdout, "another fork runs meanwhile"
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (143, "")
    assert "saved. Go on" in out
