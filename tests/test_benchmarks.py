"""The comparisons with PyTorch that anyone can run, run for a moment."""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.peers
def test_the_same_training_in_pytorch_ends_at_the_same_loss(tmp_path):
    """Float32 rounds by 6e-8; five steps of Adam, dividing by the root of small squares, make at most 1e-4 of it."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    text = tmp_path / "text.txt"
    text.write_text((ROOT / "data" / "data.txt").read_text()[:200_000])
    result = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "loss_against_pytorch.py"), str(text), "5"],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    ours, theirs = (float(loss) for loss in re.findall(r"Validation Loss: (\d+\.\d+)", result.stdout))
    assert abs(ours - theirs) <= 1e-4 * theirs


@pytest.mark.peers
def test_a_step_beside_pytorch_and_the_start_up_times():
    pytest.importorskip("torch")
    result = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "cpu.py"), "small", "start", "--rounds", "1"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert re.findall(r"^  (hipgpt|eager|compile) .* [1-9][\d.]* ms .* [1-9]\d* MiB at most$", result.stdout, re.M) == [
        "hipgpt", "eager", "compile",
    ]  # fmt: skip
    assert len(re.findall(r"^start: .* \d+\.\d+ s$", result.stdout, re.M)) == 3
