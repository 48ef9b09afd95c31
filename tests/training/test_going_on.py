"""Continuing from a checkpoint through the command: schedules, texts, computed settings, precision."""

import json
import re
from pathlib import Path

import pytest

from gpt.config import TrainConfig
from gpt.schedule import describe_rate, learning_rate
from tests.support.runs import files, logged, rates

MODEL = ("--dim", 16, "--heads", 2, "--ff", 32, "--layers", 1, "--seq", 16, "--batch", 4)
TEXT = "".join(f"the {('red', 'blue', 'old')[i * i % 3]} fox number {i % 17} ran . " for i in range(900))


@pytest.fixture
def train(hipgpt):
    Path("text.txt").write_text(TEXT)

    def run(*arguments, **kwargs):
        flags = ("--data-path", "text.txt", *MODEL, "--vocab-size", 300, "--log-every", 1)
        return hipgpt("train", *flags, *arguments, **kwargs)

    return run


@pytest.fixture
def go_on(hipgpt):
    """Continue from the latest checkpoint of a run, in a new run called `on`."""

    def run(start, *arguments, **kwargs):
        checkpoint = f"checkpoints/{start}/latest_checkpoint.safetensors"
        return hipgpt("train", "--ckpt", checkpoint, "--run-name", "on", *arguments, **kwargs)

    return run


def training(run: str, step: int | str = "latest") -> dict:
    name = "latest_config.json" if step == "latest" else f"{run}_step{step}_config.json"
    return json.loads(Path(f"checkpoints/{run}/{name}").read_text())["training"]


def change(run: str, **values) -> None:
    """Write other values into the training section of the latest config; None removes a key."""
    path = Path(f"checkpoints/{run}/latest_config.json").resolve()
    config = json.loads(path.read_text())
    config["training"] = {key: value for key, value in (config["training"] | values).items() if value is not None}
    path.write_text(json.dumps(config))


def rate_line(result) -> str:
    return next(line for line in result.stdout.splitlines() if line.startswith("Rate: "))


# ---- schedules ----------------------------------------------------------------------------------------------------


def test_more_steps_from_a_checkpoint_have_a_schedule_of_their_own(train, go_on):
    train("--run-name", "r", "--steps", 200, "--lr", "1e-3")
    result = go_on("r", "--steps", 20, "--lr", "5e-4", "--warmup-steps", 4)
    assert rates("on") == {
        step: pytest.approx(rate)
        for step, rate in ((200 + n, learning_rate(n, TrainConfig(total_steps=20, learning_rate=5e-4, warmup_steps=4)))
                           for n in range(1, 21))
    }  # fmt: skip
    assert (rates("on")[204], rates("on")[220]) == pytest.approx((5e-4, 5e-5))
    assert "Rate:   0.0001 up to step 200, then 0.0005 from step 204 on, falling to 5e-05 (cosine)" in rate_line(result)


def test_a_schedule_of_its_own_survives_an_interruption(train, go_on, hipgpt):
    train("--run-name", "r", "--steps", 30)
    go_on("r", "--steps", 40, "--ckpt-every", 10)
    hipgpt("train", "--ckpt", "checkpoints/on/on_step50.safetensors", "--resume", "--run-name", "cut")
    assert files("cut", 70) == files("on", 70)
    assert training("cut") == training("on")


def test_the_warmup_of_a_schedule_of_its_own_is_computed_from_its_own_length(train, go_on):
    train("--run-name", "r", "--steps", 150)
    go_on("r", "--steps", 100)
    assert (training("r")["warmup_steps"], training("on")["warmup_steps"]) == (3, 2)


def test_a_given_warmup_is_kept_and_refused_if_the_rate_would_never_reach_its_peak(train, go_on):
    train("--run-name", "r", "--steps", 8, "--warmup-steps", 6)
    error = go_on("r", "--steps", 6, status=2).stderr
    assert "--steps 6" in error
    assert "--warmup-steps" in error
    go_on("r", "--steps", 7)
    assert training("on")["warmup_steps"] == 6


def test_continuing_from_a_checkpoint_needs_a_choice_of_schedule(train, go_on):
    train("--run-name", "r", "--steps", 4)
    error = go_on("r", status=2).stderr
    assert "--steps N" in error
    assert "--resume" in error
    assert "--steps is 0" in go_on("r", "--steps", 0, status=2).stderr


def test_a_resumed_schedule_goes_on_and_is_lengthened_without_a_second_warmup(train, hipgpt):
    train("--run-name", "r", "--steps", 100)
    result = hipgpt("train", "--run-name", "r", "--resume", "--steps", 200)
    longer = TrainConfig(total_steps=200, warmup_steps=2)
    assert rates("r")[101] == pytest.approx(learning_rate(101, longer))
    assert rates("r")[200] == pytest.approx(3e-5)
    assert "Rate:   3e-05 up to step 100, then 0.000165 at step 101, falling to 3e-05 (cosine)" in rate_line(result)


def test_a_run_from_before_schedules_had_starts_goes_on_with_the_same_rates(train, hipgpt):
    train("--run-name", "r", "--steps", 30)
    change("r", schedule_start=None, text_start=None, unseen_fraction=None, computed=None, total_steps=60)
    hipgpt("train", "--run-name", "r", "--resume")
    assert rates("r")[45] == learning_rate(45, TrainConfig(total_steps=60, warmup_steps=0))


@pytest.mark.parametrize(
    ("config", "first", "before", "said"),
    [
        ({}, 1, None, "1 from step 10 on, falling to 0.1 (cosine)"),
        ({"warmup_steps": 0}, 1, None, "1 at first, falling to 0.1 (cosine)"),
        ({"schedule": "constant"}, 1, None, "1 from step 10 on (constant)"),
        ({"schedule": "trapezoid"}, 1, None, "1 from step 10 on, falling from step 60 on to 0.1 (trapezoid)"),
        ({"schedule": "trapezoid"}, 31, {}, "1 from step 31 on, falling from step 60 on to 0.1 (trapezoid)"),
        ({"schedule": "trapezoid"}, 81, {}, "0.527 at step 81, falling to 0.1 (trapezoid)"),
        ({"schedule": "trapezoid", "decay_fraction": 0.0}, 1, None, "1 from step 10 on (trapezoid)"),
        ({"warmup_steps": 200}, 1, None, "rising to 0.5 at step 100, the last (cosine)"),
        ({"warmup_steps": 100}, 1, None, "rising to 1 at step 100, the last (cosine)"),
        ({}, 56, {}, "0.534 at step 56, falling to 0.1 (cosine)"),
        ({}, 51, {"total_steps": 50}, "0.1 up to step 50, then 0.613 at step 51, falling to 0.1 (cosine)"),
        ({"schedule_start": 50, "warmup_steps": 5}, 51, {"total_steps": 50},
         "0.1 up to step 50, then 1 from step 55 on, falling to 0.1 (cosine)"),
        ({"schedule": "constant", "warmup_steps": 50}, 26, {"warmup_steps": 10},
         "1 up to step 25, then 0.52 at step 26, 1 from step 50 on (constant)"),
        ({"schedule": "constant", "warmup_steps": 50}, 26, {}, "1 from step 50 on (constant)"),
        ({"schedule": "trapezoid", "schedule_start": 50, "warmup_steps": 5}, 51, {"total_steps": 50},
         "0.1 up to step 50, then 1 from step 55 on, falling from step 80 on to 0.1 (trapezoid)"),
    ],
)  # fmt: skip
def test_the_line_about_the_rate_gives_the_actual_rates(config, first, before, said):
    always = {"total_steps": 100, "learning_rate": 1.0, "warmup_steps": 10}
    now = TrainConfig(**(always | config))
    then = None if before is None else TrainConfig(**(always | config | {"schedule_start": 0} | before))
    assert describe_rate(now, first, then) == f"{said}; AdamW"
    for rate, step in re.findall(r"([\d.]+) (?:at|from) step (\d+)", said):
        assert learning_rate(int(step), now) == pytest.approx(float(rate), rel=5e-3)
    falling = re.search(r"falling from step (\d+) on", said)
    if falling:
        assert learning_rate(int(falling[1]), now) == 1 > learning_rate(int(falling[1]) + 1, now)


# ---- computed settings --------------------------------------------------------------------------------------------


def test_a_config_says_which_values_were_computed(train):
    train("--run-name", "r", "--steps", 2, "--warmup-steps", 1)
    assert training("r")["computed"] == ["precision", "learning_rate", "min_lr"]
    assert training("r")["precision"] in ("fp32", "bf16")


def test_another_rate_brings_its_own_smallest_rate_along(train, hipgpt):
    train("--run-name", "r", "--steps", 4, "--lr", "1e-3")
    hipgpt("train", "--run-name", "r", "--resume", "--steps", 8, "--lr", "1e-5")
    assert training("r")["min_lr"] == pytest.approx(1e-6)
    assert rates("r")[8] == pytest.approx(1e-6)


@pytest.mark.parametrize("least", [("--lr", "1e-3"), ("--preset", "tiny", "--lr", "1e-3")])
def test_a_config_without_a_list_of_computed_values_shows_them_by_their_size(train, hipgpt, least):
    """A tenth of the rate is a computed value; a preset's 0 is a given one."""
    train("--run-name", "r", "--steps", 4, *least)
    before = training("r")["min_lr"]
    change("r", computed=None, precision="auto")
    hipgpt("train", "--run-name", "r", "--resume", "--steps", 8, "--lr", "1e-5")
    assert training("r")["min_lr"] == (pytest.approx(1e-6) if before else 0)


def test_a_smallest_rate_that_was_given_is_kept_or_has_to_be_given_again(train, hipgpt):
    train("--run-name", "r", "--steps", 4, "--lr", "1e-3", "--min-lr", "2e-4")
    on = ("train", "--run-name", "r", "--resume", "--steps", 8)
    error = hipgpt(*on, "--lr", "1e-5", status=2).stderr
    assert "--lr 1e-05 is below 0.0002" in error
    assert "give --min-lr too" in error
    hipgpt(*on, "--lr", "1e-2")
    assert training("r")["min_lr"] == 2e-4


def test_a_precision_that_only_the_checkpoint_asks_for_is_dropped_if_the_device_lacks_it(train, hipgpt):
    train("--run-name", "r", "--steps", 4, "--device", "cpu")
    on = ("train", "--run-name", "r", "--resume", "--device", "cpu", "--steps")
    change("r", precision="bf16")  # computed, on a GPU
    assert "Note: steps up to 4 were computed in bf16, those after it are in fp32" in hipgpt(*on, 5).stdout
    assert training("r")["precision"] == "fp32"
    assert "Note: steps up to" not in hipgpt(*on, 6).stdout
    change("r", precision="bf16", computed=["learning_rate", "warmup_steps", "min_lr"])  # given, on a GPU
    assert "Note: steps up to 6 were computed in bf16, those after it are in fp32" in hipgpt(*on, 7).stdout
    assert training("r")["precision"] == "fp32", "the precision of the steps so far"
    change("r", precision="bf16", computed=["learning_rate", "warmup_steps", "min_lr"])
    assert "--precision bf16 needs a GPU" in hipgpt(*on, 8, "--precision", "bf16", status=2).stderr
    assert "Note: steps up to" not in hipgpt(*on, 8, "--precision", "fp32").stdout


# ---- texts --------------------------------------------------------------------------------------------------------


def trained(run: str) -> list[dict]:
    """The lines of the log about steps of training."""
    return [line for line in logged(run) if "loss" in line]


def losses(run: str) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in trained(run)}


@pytest.mark.parametrize("sampling", ["sequential", "shuffled"])
def test_another_text_is_read_from_its_beginning_and_the_same_one_goes_on(train, hipgpt, sampling):
    """The weights hardly move, so the loss depends on the batch alone, and equal losses show equal batches."""
    flags = ("--sampling", sampling, "--accumulate", 2, "--lr", "1e-30", "--schedule", "constant")
    train("--run-name", "r", *flags, "--steps", 5)
    train("--run-name", "whole", *flags, "--steps", 8)
    checkpoint = ("--ckpt", "checkpoints/r/r_step5_config.json", "--steps", 3)
    hipgpt("train", *checkpoint, "--run-name", "same")
    assert [losses("same")[step] for step in (6, 7, 8)] == [losses("whole")[step] for step in (6, 7, 8)]

    Path("other.txt").write_text(TEXT[5000:])
    Path("checkpoints/fresh").mkdir()
    Path("checkpoints/fresh/tokenizer.json").write_bytes(Path("checkpoints/r/tokenizer.json").read_bytes())
    train("--run-name", "fresh", "--data-path", "other.txt", *flags, "--steps", 5)
    hipgpt("train", *checkpoint, "--run-name", "other", "--data-path", "other.txt")
    hipgpt("train", "--run-name", "other", "--resume", "--steps", 10)
    assert list(losses("other").values()) == list(losses("fresh").values())
    assert [line["passes"] for line in trained("other")] == [line["passes"] for line in trained("fresh")]


def test_dropout_may_change_on_the_way(train, hipgpt):
    train("--run-name", "r", "--steps", 4)
    hipgpt("train", "--run-name", "r", "--resume", "--steps", 6, "--dropout", 0.5)
    config = json.loads(Path("checkpoints/r/latest_config.json").read_text())
    assert config["model"]["dropout"] == 0.5
    train("--run-name", "s", "--steps", 6)
    assert losses("r")[5] != losses("s")[5]
    on = ("train", "--run-name", "r", "--resume", "--steps", 9)
    assert "--dropout is 1.0" in hipgpt(*on, "--dropout", 1, status=2).stderr
    assert "--activation relu contradicts" in hipgpt(*on, "--activation", "relu", status=2).stderr


def seen(result) -> list[int]:
    found = re.search(r"Note: ([\d,]+) of the ([\d,]+) tokens held out were trained on", result.stdout)
    return [int(number.replace(",", "")) for number in found.groups()] if found else []


def test_held_out_text_that_was_trained_on_before_is_reported(train, go_on, hipgpt):
    train("--run-name", "r", "--steps", 4, "--val-fraction", 0.1)
    count = json.loads(Path("checkpoints/r/tokens.json").read_text())["count"]
    on = ("train", "--run-name", "r", "--resume", "--steps")
    assert seen(hipgpt(*on, 5, "--val-fraction", 0.4)) == [int(count * 0.4) - int(count * 0.1), int(count * 0.4)]
    assert seen(hipgpt(*on, 6)), "it is still true"
    assert not seen(hipgpt(*on, 7, "--val-fraction", 0.05))
    assert seen(hipgpt(*on, 8, "--val-fraction", 0.1)) == [int(count * 0.1) - int(count * 0.05), int(count * 0.1)]
    Path("other.txt").write_text(TEXT[5000:])
    assert not seen(go_on("r", "--steps", 2, "--val-fraction", 0.3, "--data-path", "other.txt"))


def test_losses_of_other_held_out_text_do_not_compete_for_the_best(train, hipgpt):
    train("--run-name", "r", "--steps", 40, "--lr", "1e-2", "--eval-every", 20)
    hipgpt("train", "--run-name", "r", "--resume", "--steps", 41, "--lr", "1e-9", "--val-fraction", 0.5)
    best = json.loads(Path("checkpoints/r/best_config.json").read_text())
    assert (best["checkpoint"]["step"], best["training"]["val_fraction"]) == (41, 0.5)
