"""The model quality that a run reports, and the best checkpoint that it keeps, tested through the command."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import termios
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.processes import read_terminal, start, wait_for_line
from tests.support.runs import LOG_LINE

MODEL = ("--dim", 32, "--heads", 2, "--ff", 64, "--layers", 1, "--seq", 16, "--batch", 4, "--vocab-size", 100)
EVERY = 10
# HipGPT's plot script reads a log with these patterns
STEP_LOSS = re.compile(r"\[Step (\d+)\] Loss: ([\d.]+)")
VALIDATION_LOSS = re.compile(r"\[Step (\d+)\] Validation Loss: ([\d.]+) \| Perplexity: ([\d.]+) \| Accuracy: ([\d.]+)%")


@pytest.fixture
def text(tmp_path) -> Path:
    """Words at random: a model can learn their frequencies, and can only memorize the rest."""
    words = [a + b for a in "bcdfg" for b in "aeiou"]
    chosen = np.random.default_rng(0).choice(words, 1200)
    path = tmp_path / "text.txt"
    path.write_text("\n".join(" ".join(line) for line in chosen.reshape(-1, 10)) + "\n")
    return path


@pytest.fixture
def train(hipgpt, text):
    """Train the run r, whose validation loss soon rises; with `train.once` another run, once for all tests."""
    flags = ("train", "--data-path", text, *MODEL, "--lr", "1e-2", "--eval-every", EVERY, "--log-every", 20)

    def run(*arguments, name="r", **kwargs):
        return hipgpt(*flags, "--run-name", name, *arguments, **kwargs)

    run.once = lambda *arguments, name: hipgpt.once(*flags, *arguments, name=name)
    return run


@pytest.fixture
def cut(hipgpt, text):
    """Start the same run in the background, wait for a line of its log, and end it with a signal."""

    def run(line, number, *arguments, name="r"):
        flags = ("--lr", "1e-2", "--eval-every", EVERY, "--log-every", 20, "--run-name", name)
        process = start(hipgpt, "--data-path", text, *MODEL, *flags, *arguments)
        wait_for_line(process, line)
        process.send_signal(number)
        process.communicate(timeout=60)
        return process.returncode

    return run


def directory(run="r"):
    return Path("checkpoints") / run


def validation(run="r"):
    lines = [json.loads(line) for line in (directory(run) / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["val_loss"]) for line in lines if "val_loss" in line]


def best(run="r"):
    return json.loads((directory(run) / "best_config.json").read_text())["checkpoint"]


def lowest(run="r"):
    return min(validation(run), key=lambda each: each[1])


# ---- the best checkpoint ------------------------------------------------------------------------------------------


def test_the_best_checkpoint_is_the_one_with_the_lowest_validation_loss_and_is_never_pruned(train):
    train("--steps", 100, "--ckpt-every", EVERY, "--keep-last", 100, name="all")
    train("--steps", 100, "--ckpt-every", EVERY, "--keep-last", 1)
    step, loss = lowest()
    assert 0 < step < 100
    assert best() == {"latest": f"r_best_step{step}.safetensors", "step": step, "val_loss": loss}
    kept = (directory() / "best_checkpoint.safetensors").read_bytes()
    assert kept == (directory("all") / f"all_step{step}.safetensors").read_bytes()
    weights = {path.name for path in directory().glob("*.safetensors")}
    assert weights == {
        "best_checkpoint.safetensors", f"r_best_step{step}.safetensors", "latest_checkpoint.safetensors",
        "r_step100.safetensors", "r_step100_optimizer.safetensors",
    }  # fmt: skip


def test_generate_and_export_take_the_best_and_done_names_it(train, hipgpt):
    out = train("--steps", 100, "--ckpt-every", EVERY, "--keep-last", 100).stdout
    step, _ = lowest()
    assert out.splitlines()[-1] == 'Done. Try it: hipgpt generate --run-name r --best --prompt "…"'
    generate = ("generate", "--run-name", "r", "--prompt", "ba be", "--num-tokens", 8)
    assert hipgpt(*generate, "--best").stdout == hipgpt(*generate, "--step", step).stdout != hipgpt(*generate).stdout
    hipgpt("export", "--run-name", "r", "--best", "--out", "hf")
    exported, kept = (load_file(path) for path in ("hf/model.safetensors", directory() / "best_checkpoint.safetensors"))
    assert all(np.array_equal(exported[name], kept[name]) for name in kept)
    for command in (generate, ("export", "--run-name", "r", "--out", "other")):
        refused = hipgpt(*command, "--best", "--step", 10, status=2).stderr
        assert refused == "Error: --best has a step of its own, but --step 10 names one: leave one of them out\n"
    assert not Path("other").exists()


def test_runs_shows_best_and_last_validation_loss_with_their_steps(train, hipgpt):
    train("--steps", 60)
    (best_step, best_loss), (last_step, last_loss) = lowest(), validation()[-1]
    columns = re.split("  +", hipgpt("runs").stdout.splitlines()[1])
    assert columns[4:6] == [f"{best_loss:.4f} at {best_step}", f"{last_loss:.4f} at {last_step}"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_best_survives_a_later_stop_that_loses_the_steps_in_between(train, cut, number):
    """A killed run resumes from step 25, which comes before its best step or after it."""
    steps = ("--steps", 120, "--ckpt-every", 25)
    train.once(*steps, name="whole")
    cut("[Step 40] Loss", number, *steps)
    train("--resume", "--steps", 120)
    assert validation() == validation("whole")
    assert best()["step"] == best("whole")["step"]
    assert best()["val_loss"] == best("whole")["val_loss"]
    kept = [(directory(run) / "best_checkpoint.safetensors").read_bytes() for run in ("r", "whole")]
    assert kept[0] == kept[1]


def set_back_to(step: int) -> None:
    """Leave the run's files as a kill before the next checkpoint would, but keep all lines of its log."""
    for path in directory().glob("r_step*"):
        if not path.name.startswith((f"r_step{step}_", f"r_step{step}.")):
            path.unlink()
    (directory() / "latest_config.json").unlink()


def test_a_better_loss_of_steps_that_a_kill_has_lost_stays_the_best(train, cut):
    """From step 10, the run continues at such a low rate that it never comes near its earlier loss."""
    cut("[Step 40] Loss", signal.SIGKILL, "--steps", 200, "--ckpt-every", 10, "--keep-last", 100)
    before = best()
    assert before["step"] > 10
    kept = (directory() / "best_checkpoint.safetensors").read_bytes()
    set_back_to(10)
    train("--resume", "--steps", 60, "--lr", "1e-9", "--min-lr", 0)
    assert min(loss for _, loss in validation() if loss) > before["val_loss"]
    assert best() == before
    assert (directory() / "best_checkpoint.safetensors").read_bytes() == kept


def test_a_run_killed_before_its_first_checkpoint_writes_with_its_best_weights_until_it_is_trained_anew(
    cut, train, hipgpt
):
    cut("[Step 20] Validation", signal.SIGKILL, "--steps", 5000, "--ckpt-every", 0)
    assert hipgpt("generate", "--run-name", "r", "--best", "--prompt", "ba").stdout.startswith("ba")
    assert "--best" in hipgpt("generate", "--run-name", "r", "--prompt", "ba", status=2).stderr
    assert "without --resume" in train("--steps", 5, "--resume", status=2).stderr
    assert best()["step"] in range(EVERY, 5001, EVERY), "steps went on until the signal came"
    train("--steps", 30)
    assert best()["step"] == 30
    assert [path.name for path in directory().glob("r_best_step*.safetensors")] == ["r_best_step30.safetensors"]


def test_a_branch_into_a_run_that_was_killed_early_does_not_take_its_best_for_its_own(cut, train, hipgpt):
    cut("[Step 20] Validation", signal.SIGKILL, "--steps", 5000, "--ckpt-every", 0)
    train("--steps", 2, name="other")
    branch = ("--ckpt", "checkpoints/other/latest_checkpoint.safetensors", "--run-name", "r", "--steps", 2)
    hipgpt("train", *branch)
    assert best()["step"] == 4


@pytest.mark.parametrize("file", ["best_checkpoint.safetensors", "best_config.json"])
def test_training_does_not_go_on_from_weights_alone(train, hipgpt, file):
    train.once("--steps", 20, name="r")
    error = hipgpt("train", "--ckpt", f"checkpoints/r/{file}", "--run-name", "new", "--steps", 5, status=2).stderr
    assert "weights without the optimizer's state" in error
    assert not directory("new").exists()


def test_a_best_checkpoint_that_was_deleted_is_made_anew(train):
    train.once("--steps", 20, name="r")
    for path in directory().glob("*best_step*"):
        path.unlink()
    train("--resume", "--steps", 30)
    assert best()["step"] == 30


# ---- memorizing, and patience -------------------------------------------------------------------------------------


def test_a_rising_validation_loss_is_noted_once_with_the_kept_step_and_advice(hipgpt, text):
    text.write_text(text.read_text()[:1200])  # a model soon memorizes so little text
    model = ("--dim", 64, "--heads", 2, "--ff", 256, "--layers", 2, "--seq", 16, "--batch", 8, "--lr", "5e-3")
    flags = ("--steps", 150, "--schedule", "constant", "--eval-every", 30, "--val-fraction", 0.2)
    lines = hipgpt("train", "--data-path", text, *model, *flags, "--run-name", "r").stdout.splitlines()
    losses = [loss for _, loss in validation()]
    assert losses == sorted(losses)
    (said,) = (index for index, line in enumerate(lines) if "the model now memorizes" in line)
    assert lines[said - 1].startswith("[Step 120] Validation Loss: ")
    assert f"step 30 with {losses[0]:.4f}, is kept" in lines[said]
    assert all(word in lines[said] for word in ("--best", "--dropout", "--steps", "more text"))


PATIENT = ("--steps", 400, "--ckpt-every", 25, "--patience", 4)


def test_patience_ends_a_run_with_a_checkpoint_and_names_the_reason_and_the_kept_step(train, hipgpt):
    out = train(*PATIENT).stdout
    step, loss = lowest()
    end = step + 4 * EVERY
    assert validation()[-1][0] == end
    assert f"Ended at step {end} by --patience 4" in out
    assert f"step {step} with {loss:.4f}, is kept" in out
    latest = json.loads((directory() / "latest_config.json").read_text())
    assert latest["checkpoint"]["step"] == end
    assert latest["training"]["patience"] == 4
    assert f"--patience 4 at step {end}" in hipgpt("train", "--run-name", "r", "--resume", status=2).stderr
    hipgpt("train", "--run-name", "r", "--resume", "--patience", 0, "--steps", end + 5)
    assert f"{end + 5}/{end + 5}" in hipgpt("runs").stdout


def test_patience_counts_anew_when_another_part_of_the_text_is_held_out(train, hipgpt):
    train.once(*PATIENT, name="r")
    end = validation()[-1][0]
    resumed = ("--run-name", "r", "--resume", "--steps", end + 2 * EVERY, "--val-fraction", 0.2)
    out = hipgpt("train", *resumed).stdout
    assert [step for step, _ in validation()][-2:] == [end + EVERY, end + 2 * EVERY]
    assert "by --patience" not in out
    assert "Guessing by frequency" in out, "another part is held out"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("line", ["[Step 40] Loss", "[Step 50] Validation"])
def test_a_stopped_and_resumed_run_ends_by_patience_at_the_same_step(train, cut, hipgpt, number, line):
    train.once(*PATIENT, name="whole")
    end = validation("whole")[-1][0]
    assert end > 50
    if cut(line, number, *PATIENT):  # on a busy machine it may have reached its end before the signal came
        hipgpt("train", "--run-name", "r", "--resume")
    assert validation() == validation("whole")
    last = [(directory(run) / f"{run}_step{end}.safetensors").read_bytes() for run in ("r", "whole")]
    assert last[0] == last[1]


def test_an_evaluation_that_a_signal_cut_short_is_made_up_for(train, hipgpt):
    """The record of step 20 is removed, as if the signal had come during its evaluation."""
    train("--steps", 60, name="whole")
    train("--steps", 60, "--ckpt-every", 20)
    set_back_to(20)
    metrics = directory() / "metrics.jsonl"
    kept = [line for line in metrics.read_text().splitlines(True) if not ('"step": 20,' in line and "val_loss" in line)]
    metrics.write_text("".join(kept))
    hipgpt("train", "--run-name", "r", "--resume")
    assert validation() == validation("whole")


def test_patience_ends_a_run_by_an_evaluation_that_is_made_up_for(train, hipgpt):
    """As above, but with the evaluation that ends the run."""
    train.once(*PATIENT, name="r")
    before, metrics = validation(), directory() / "metrics.jsonl"
    kept = [line for line in metrics.read_text().splitlines(True) if f'"step": {before[-1][0]}, ' not in line]
    metrics.write_text("".join(kept))
    out = hipgpt("train", "--run-name", "r", "--resume").stdout
    assert f"Ended at step {before[-1][0]} by --patience 4" in out
    assert validation() == before


# ---- evaluation off, and units ------------------------------------------------------------------------------------


def test_eval_every_0_turns_evaluation_off(train, hipgpt):
    out = train("--steps", 20, "--eval-every", 0).stdout
    assert "Validation" not in out
    assert "best weights" not in out
    assert not list(directory().glob("*best*"))
    assert re.split("  +", hipgpt("runs").stdout.splitlines()[1])[4:6] == ["-", "-"]
    for command in (("generate", "--prompt", "ba"), ("export", "--out", "hf")):
        assert "has no best checkpoint" in hipgpt(*command, "--run-name", "r", "--best", status=2).stderr


def test_the_first_evaluation_gives_the_loss_of_guessing_by_frequency(train):
    out = train("--steps", 20).stdout
    guess = re.search(r"^Guessing by frequency would give (\d\.\d\d) \((\d\.\d\d) bits/byte\)\.$", out, re.MULTILINE)
    assert float(guess[1]) == pytest.approx(np.log(25), abs=0.1), "25 words, all equally frequent"
    assert out.count("Guessing") == 1
    assert "Guessing" not in train("--steps", 40, "--resume").stdout
    line = next(line for line in out.splitlines() if "Validation" in line)
    bits = re.fullmatch(VALIDATION_LOSS.pattern + r" \| Bits/byte: (\d\.\d{3})", line)
    nats, tokens_per_byte = float(bits[2]), 1 / 3  # each word is a token, of two letters and a space
    assert float(bits[5]) == pytest.approx(nats / np.log(2) * tokens_per_byte, abs=1e-3)


def test_every_logged_line_says_how_long_and_on_how_much_the_run_has_trained_across_a_resume(train):
    train("--steps", 30)
    train("--steps", 60, "--resume")
    lines = [json.loads(line) for line in (directory() / "metrics.jsonl").read_text().splitlines()]
    assert [line["tokens"] for line in lines] == [line["step"] * 4 * 16 for line in lines]
    assert [line["passes"] for line in lines] == pytest.approx([line["tokens"] / 1140 for line in lines], abs=1e-4)
    times = [line["time"] for line in lines]
    assert times == sorted(times)
    assert times[0] > 0
    assert all(line["val_bits_per_byte"] > 0 for line in lines if "val_loss" in line)


# ---- before step 1 ------------------------------------------------------------------------------------------------


def test_tokens_passes_and_disk_space_are_printed_before_step_1(train):
    out = train("--steps", 1000, "--patience", 1).stdout
    assert "Data:   1,200 tokens, 60 of them held out; 64 tokens per step (4 x 16)\n" in out
    passes = "1,000 steps are 56 passes over 1,140 tokens: the model will memorize; about 300 steps would do"
    assert f"Steps:  {passes}\n" in out
    assert re.search(r"Disk:   a checkpoint takes \d+ KiB; the last 5 are kept, and the best weights \(\d+ KiB\)", out)
    assert "Steps:  100 steps are 5.6 passes over 1,140 tokens\n" in train("--steps", 100, name="short").stdout


def test_the_disk_line_gives_the_size_of_the_files(train):
    out = train("--steps", 10, "--keep-last", 1).stdout
    disk = re.search(r"takes (\d+) KiB; the last one is kept, and the best weights \((\d+)", out)
    checkpoint, best_weights = disk.groups()
    files = [directory() / f"r_step10{part}.safetensors" for part in ("", "_optimizer")]
    taken = sum(path.stat().st_size for path in files) / 1024
    assert taken == pytest.approx(int(checkpoint), abs=1 + 8)  # each file begins with 4 KiB of names at most
    assert files[0].stat().st_size / 1024 == pytest.approx(int(best_weights), abs=1 + 4)


# ---- samples ------------------------------------------------------------------------------------------------------


def test_samples_are_shown_and_logged_and_change_nothing_else(train):
    out = train("--steps", 50, "--sample-every", 20, "--sample-prompt", "ba be", name="with").stdout
    train("--steps", 50, name="without")
    shown = re.findall(r"^\[Step (\d+)\] Sample: (ba be .*)$", out, re.MULTILINE)
    assert [int(step) for step, _ in shown] == [20, 40, 50]
    lines = [json.loads(line) for line in (directory("with") / "metrics.jsonl").read_text().splitlines()]
    assert [(str(line["step"]), line["sample"]) for line in lines if "sample" in line] == shown
    read = [STEP_LOSS.findall(out), VALIDATION_LOSS.findall(out)]
    assert [int(match[0]) for match in read[0]] == [20, 40, 50]
    assert [int(match[0]) for match in read[1]] == [10, 20, 30, 40, 50]
    last = [(directory(run) / f"{run}_step50{part}.safetensors").read_bytes()
            for part in ("", "_optimizer") for run in ("with", "without")]  # fmt: skip
    assert last[0] == last[1]
    assert last[2] == last[3]
    config = json.loads((directory("with") / "latest_config.json").read_text())
    assert (config["training"]["sample_every"], config["training"]["sample_prompt"]) == (20, "ba be")


def test_a_resumed_run_repeats_neither_a_sample_nor_an_evaluation_of_the_step_that_it_begins_with(train):
    train("--steps", 20, "--sample-every", 10)
    assert "[Step 20] Sample" not in train("--resume", "--steps", 30).stdout
    lines = [json.loads(line) for line in (directory() / "metrics.jsonl").read_text().splitlines()]
    for key in ("sample", "val_loss"):
        assert [line["step"] for line in lines if key in line] == [10, 20, 30]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--sample-prompt", "ba"), "--sample-prompt needs --sample-every"),
        (("--sample-every", 5, "--sample-prompt", "ЖЖ"), "--sample-prompt 'ЖЖ' has no token"),
        (("--sample-every", 5, "--sample-prompt", ""), "--sample-prompt '' has no token"),
        (("--sample-every", 5, "--sample-prompt", b"\xff"), "is not valid text"),
        (("--sample-every", -1), "--sample-every is -1"),
        (("--patience", 2, "--eval-every", 0), "--patience is 2, but nothing is evaluated"),
    ],
)
def test_impossible_settings_are_refused_in_one_line_and_leave_nothing_behind(train, flags, complaint):
    assert complaint in train("--steps", 5, *flags, status=2).stderr
    assert not directory().exists()


# ---- runs made before, and terminals ------------------------------------------------------------------------------


def test_a_run_of_a_version_without_best_checkpoints_is_listed_and_goes_on(train, hipgpt):
    train("--steps", 30, name="whole")
    train.once("--steps", 20, name="r")
    for path in directory().glob("*best*"):
        path.unlink()
    for path in (directory() / "r_step20_config.json", directory() / "latest_config.json"):
        config = json.loads(path.read_text())
        for key in ("patience", "sample_every", "sample_prompt"):
            config["training"].pop(key, None)
        path.write_text(json.dumps(config))
    metrics = directory() / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    for line in lines:
        for key in ("time", "tokens", "passes", "val_bits_per_byte"):
            line.pop(key, None)
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    step, loss = lowest()
    assert f"{loss:.4f} at {step}" in hipgpt("runs").stdout
    hipgpt("train", "--run-name", "r", "--resume", "--steps", 30)
    assert [step for step, _ in validation()] == [10, 20, 30]
    assert json.loads(metrics.read_text().splitlines()[-1])["tokens"] == 30 * 64


def test_on_a_terminal_of_80_columns_nothing_is_wider_and_lines_wrap_between_words(hipgpt, text):
    environment = {key: value for key, value in hipgpt.environment.items() if key != "COLUMNS"} | {"TERM": "xterm"}
    flags = ("--run-name", "r", "--steps", 50_000, "--eval-every", 10, "--log-every", 10, "--ckpt-every", 0)
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = hipgpt.start(
        "train", "--data-path", text, *MODEL, *flags, stdin=side, stdout=side, stderr=side, env=environment
    )
    os.close(side)
    shown, is_stopping = b"", False
    while data := read_terminal(main):
        shown += data
        if b", val " in shown and not is_stopping:
            is_stopping = True
            process.send_signal(signal.SIGINT)
    os.close(main)
    assert process.wait(timeout=60) == 130
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    rows = [row.rstrip() for row in re.split(r"[\r\n]+", plain)]
    assert max(map(len, rows)) <= 80, max(rows, key=len)
    status = re.compile(r"Training .*%\s+\d+/50000, loss \d\.\d{3}, val \d\.\d{3}, [\d.]+k? tok/s [\d:-]+")
    assert any(map(status.fullmatch, rows))
    log = rows.index(next(row for row in rows if row.startswith("[Step 10] Loss: ")))
    words = " ".join(rows[log : log + 2])
    assert re.fullmatch(LOG_LINE.pattern, words), "wrapped between words"
    assert re.match(r"\[Step 10\] Loss: \S+ \| Perplexity: \S+ \| Accuracy: \d+\.\d\d%", rows[log])
