"""Optimizers, schedules and presets through the command: the state that they keep, resuming, and refusals."""

import json
import signal
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from gpt.config import PRESETS
from tests.support import ROOT
from tests.support.processes import start, wait_for_line
from tests.support.runs import files, rates

MODEL = ("--dim", 16, "--heads", 2, "--ff", 32, "--layers", 2, "--seq", 16, "--batch", 4, "--vocab-size", 300)
MUON = ("--optimizer", "muon", "--lr", "1e-2")


@pytest.fixture
def train(hipgpt, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"the {('red', 'blue', 'old')[i * i % 3]} fox number {i % 17} ran . " for i in range(900)))

    def run(*arguments, **kwargs):
        return hipgpt("train", "--data-path", text, *MODEL, *arguments, **kwargs)

    return run


def test_muon_learns_and_keeps_one_moment_of_a_blocks_matrix(train):
    out = train("--run-name", "r", "--steps", 60, "--log-every", 20, *MUON).stdout
    losses = [float(line.split("Loss: ")[1].split()[0]) for line in out.splitlines() if "] Loss: " in line]
    assert losses[-1] < 0.6 * losses[0]
    kept = load_file("checkpoints/r/r_step60_optimizer.safetensors")
    assert kept["momentum.transformer.h.0.attn.c_attn.weight"].shape == (16, 48)
    assert "exp_avg.transformer.h.0.attn.c_attn.weight" not in kept
    assert "exp_avg_sq.transformer.wte.weight" in kept


def test_a_run_with_muon_that_was_stopped_or_killed_goes_on_to_the_same_bits(train, hipgpt):
    steps = (*MUON, "--steps", 120, "--log-every", 10, "--ckpt-every", 20, "--dropout", 0.1)
    train("--run-name", "whole", *steps)
    for name, number in (("stopped", signal.SIGINT), ("killed", signal.SIGKILL)):
        process = start(hipgpt, "--data-path", "text.txt", *MODEL, "--run-name", name, *steps)
        wait_for_line(process, "[Step 50]")
        process.send_signal(number)
        process.communicate(timeout=60)
        hipgpt("train", "--run-name", name, "--resume")
        assert files(name, 120) == files("whole", 120)


@pytest.mark.parametrize(("first", "second"), [("adamw", "muon"), ("muon", "adamw")])
def test_a_checkpoint_cannot_be_resumed_with_another_optimizer(train, hipgpt, first, second):
    train("--run-name", "r", "--steps", 2, "--optimizer", first)
    for place in (("--run-name", "r", "--resume"), ("--ckpt", "checkpoints/r/r_step2.safetensors")):
        error = hipgpt("train", *place, "--steps", 4, "--optimizer", second, status=2).stderr
        assert first in error
        assert f"--optimizer {second}" in error
    hipgpt("train", "--run-name", "r", "--resume", "--steps", 4, "--optimizer", first)


def test_a_trapezoid_is_lengthened_from_before_its_decay_as_if_it_had_been_longer_from_the_start(train, hipgpt):
    """The rate before the decay does not depend on the number of steps, so no other result before it does."""
    trapezoid = (*MUON, "--schedule", "trapezoid", "--min-lr", 0, "--warmup-steps", 4, "--log-every", 1)
    train("--run-name", "short", *trapezoid, "--steps", 20, "--decay-fraction", 0.5, "--ckpt-every", 5)
    longer = ("train", "--resume", "--ckpt", "checkpoints/short/short_step10.safetensors", "--run-name", "longer")
    assert "Rate:   0.01 from step 11 on, falling from step 20 on to 0" in hipgpt(*longer, "--steps", 40).stdout
    train("--run-name", "long", *trapezoid, "--steps", 40, "--decay-fraction", 0.5)
    assert files("longer", 40) == files("long", 40)
    assert rates("short")[20] == 0
    assert [rates("long")[step] for step in (4, 20, 30, 40)] == pytest.approx([1e-2, 1e-2, 5e-3, 0])


def test_another_optimizer_than_the_presets_takes_that_ones_own_rate_and_schedule(train):
    train("--run-name", "r", "--preset", "tiny", "--steps", 1, "--optimizer", "adamw")
    training = json.loads(Path("checkpoints/r/latest_config.json").read_text())["training"]
    assert (training["learning_rate"], training["min_lr"], training["schedule"]) == (3e-4, 3e-4 / 10, "cosine")
    train("--run-name", "s", "--preset", "tiny", "--steps", 1, "--optimizer", "adamw", "--lr", "1e-3")
    assert json.loads(Path("checkpoints/s/latest_config.json").read_text())["training"]["learning_rate"] == 1e-3


def test_a_trapezoid_is_lengthened_in_its_own_run_too_from_before_its_decay(train, hipgpt):
    trapezoid = (*MUON, "--schedule", "trapezoid", "--min-lr", 0, "--warmup-steps", 4, "--decay-fraction", 0.5)
    train("--run-name", "r", *trapezoid, "--steps", 10, "--decay-fraction", 0)
    hipgpt("train", "--run-name", "r", "--resume", "--steps", 40, "--decay-fraction", 0.5)
    train("--run-name", "long", *trapezoid, "--steps", 40)
    assert files("r", 40) == files("long", 40)


def test_the_start_up_lines_say_how_the_weights_move(train):
    out = train("--run-name", "r", "--preset", "tiny", "--steps", 100).stdout
    assert "Rate:   0.016 from step 10 on, falling from step 50 on to 0 (trapezoid)" in out
    assert "Muon for the blocks' matrices, AdamW for the rest" in out
    out = train("--run-name", "s", "--steps", 100).stdout
    assert "Rate:   0.0003 from step 2 on, falling to 3e-05 (cosine)" in out


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--decay-fraction", 1.5), "--decay-fraction is 1.5"),
        (("--decay-fraction", "nan"), "--decay-fraction is nan"),
        (("--optimizer", "sgd"), "sgd"),
        (("--schedule", "triangle"), "triangle"),
    ],
)
def test_rubbish_is_refused_in_one_line(train, flags, complaint):
    assert complaint in train(*flags, status=2).stderr


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains_with_its_own_settings(hipgpt, preset):
    """The preset's recipe, on a model that is small enough for a test."""
    small = ("--dim", 16, "--heads", 2, "--ff", 32, "--layers", 1, "--seq", 16, "--batch", 2, "--vocab-size", 300)
    data = ("--data-path", ROOT / "data" / "data.txt")
    hipgpt("train", *data, "--run-name", "r", "--preset", preset, *small, "--steps", 2, "--device", "cpu")
    training = json.loads(Path("checkpoints/r/latest_config.json").read_text())["training"]
    wanted = PRESETS[preset]
    assert {key: training[key] for key in ("optimizer", "schedule", "learning_rate", "min_lr")} == {
        key: wanted[key] for key in ("optimizer", "schedule", "learning_rate", "min_lr")
    }
