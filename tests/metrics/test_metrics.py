"""Curves of a run's log, drawn as text and as a picture; summaries of runs in words and as JSON."""

import doctest
import json
import math
import re
import sys
from dataclasses import replace

import numpy as np
import pytest

from gpt import checkpoint
from gpt.config import ModelConfig, TrainConfig
from gpt.errors import UserError
from gpt.initialization import initial_weights
from gpt.metrics import curves, listing, picture, terminal
from gpt.metrics.curves import Curve, curve
from gpt.metrics.summary import summary
from gpt.optim import COUNTERS, optimizer_shapes
from gpt.run import Run

MODEL = ModelConfig(vocab_size=7, max_seq_len=4, embed_dim=4, num_heads=1, ff_hidden_dim=4, num_layers=1)
LINES = [
    {"step": 10, "time": 1.5, "tokens": 640, "loss": 5.0, "lr": 0.01, "grad_norm": 2.0, "tokens_per_second": 400.0},
    {"step": 20, "time": 3.0, "tokens": 1280, "loss": 4.0, "lr": 0.02, "grad_norm": 1.0, "tokens_per_second": 500.0},
    {"step": 20, "time": 3.0, "tokens": 1280, "val_loss": 4.25},
    {"step": 30, "time": 4.5, "tokens": 1920, "loss": 3.0, "lr": 0.01, "grad_norm": 1.0, "tokens_per_second": 450.0},
    {"step": 30, "time": 4.5, "tokens": 1920, "val_loss": 4.5},
]


@pytest.fixture
def run(tmp_path):
    run = Run("r", tmp_path / "checkpoints")
    run.path.mkdir(parents=True)
    log(run, LINES)
    return run


def log(run, lines):
    run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def save(run, step, **settings):
    """A checkpoint of `step`, of 30 steps that are not evaluated."""
    config = TrainConfig(total_steps=30, eval_every=0, **settings)
    weights = dict(initial_weights(MODEL, 0))
    optimizer = {name: np.zeros(shape, np.float32) for name, shape in optimizer_shapes(MODEL, config.optimizer).items()}
    checkpoint.save(run, step, MODEL, config, weights, optimizer, dict.fromkeys(COUNTERS, 0))


# ---- curves ------------------------------------------------------------------------------------------------------


def test_the_examples_hold():
    assert doctest.testmod(curves) == (0, 3)


@pytest.mark.parametrize(("axis", "places"), [("steps", [20, 30]), ("tokens", [1280, 1920]), ("time", [3.0, 4.5])])
def test_a_curve_has_the_lines_that_have_its_quantity(axis, places):
    assert curve(LINES, "val_loss", axis) == Curve(places, [4.25, 4.5])


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "3", True])
def test_a_value_that_is_no_finite_number_is_left_out(value):
    assert curve([*LINES, {"step": 40, "val_loss": value}], "val_loss", "steps").x == [20, 30]


def test_the_first_of_equal_values_is_the_lowest():
    assert Curve([1, 2, 3], [4, 3, 3]).lowest == (2, 3)
    assert Curve([], []).lowest is None


def test_a_run_without_a_log_is_refused_by_name(run):
    log(run, [])
    with pytest.raises(UserError, match="run r has logged no step yet"):
        curves.logs([run], "steps")
    with pytest.raises(UserError, match="there is no run .*none"):
        curves.logs([Run("none", run.path.parent)], "steps")


def test_an_old_log_is_plotted_over_steps_alone(run):
    log(run, [{"step": 1, "loss": 2.0}])
    assert list(curves.logs([run], "steps")) == ["r"]
    with pytest.raises(UserError, match="has no tokens"):
        curves.logs([run], "tokens")


# ---- drawing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", curves.AXES)
def test_the_terminal_shows_every_quantity_and_the_lowest_validation_loss(axis):
    text = terminal.drawn({"a": LINES, "b": LINES}, axis, columns=80)
    for panel in curves.PANELS:
        assert panel.title in text
    assert max(map(len, text.splitlines())) <= 80
    place = {"steps": "step 20", "tokens": "1,280 tokens", "time": "3 s"}[axis]
    assert f"a: lowest validation loss 4.2500 at {place}\n" in text
    assert "b, validation" in text
    assert "\x1b" not in text
    assert "\x1b" in terminal.drawn({"a": LINES}, axis, columns=80, color=True)


def test_runs_differ_without_color(tmp_path):
    training = dict.fromkeys(("a", "b"), LINES[:2])  # no validation
    ((first, second),) = re.findall("(..) a, training +(..) b, training", terminal.drawn(training, "steps", columns=80))
    assert first != second


def test_a_run_that_diverged_does_not_press_the_others_flat(tmp_path, monkeypatch):
    logs = {"a": LINES, "b": [{"step": 10, "loss": 8e12}, {"step": 20, "val_loss": 9e12}]}
    numbers = re.findall("│ ([\\d.,]+)$", terminal.drawn(logs, "steps", columns=80), re.MULTILINE)
    assert {"3", "4", "5"} & set(numbers)
    assert "e+12" not in terminal.drawn({"a": LINES, "b": logs["b"][:1]}, "steps", columns=80)
    pytest.importorskip("matplotlib")
    picture.draw(logs, "steps", tmp_path / "c.svg")
    text = (tmp_path / "c.svg").read_text()
    assert "4.2500" in text
    assert "9e+12" not in text


def test_small_numbers_are_shown_in_units_of_a_power_of_ten():
    assert "Learning rate (1e-2)" in terminal.drawn({"a": LINES}, "steps", columns=80)


@pytest.mark.parametrize("loss", [0.0, 1e-30, 1e30, -1.0])
@pytest.mark.parametrize("columns", [1, 80, 500])
def test_a_single_point_of_any_size_is_drawn(loss, columns):
    assert "Loss" in terminal.drawn({"a": [{"step": 1, "loss": loss}]}, "steps", columns)


@pytest.mark.parametrize(("name", "beginning"), [("c.png", b"\x89PNG"), ("c.svg", b"<?xml"), ("C.PDF", b"%PDF")])
def test_a_picture_has_the_format_of_its_name(tmp_path, name, beginning):
    pytest.importorskip("matplotlib")
    picture.draw({"first": LINES, "second": LINES[:1]}, "steps", tmp_path / name)
    data = (tmp_path / name).read_bytes()
    assert data.startswith(beginning)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    if name == "c.svg":
        for text in ("first", "second", "training", "validation", "4.2500", "Tokens per second"):
            assert text in data.decode()


@pytest.mark.parametrize("count", [1, 12])
def test_the_legend_of_a_picture_names_each_run_once_and_above_the_curves(tmp_path, count):
    pytest.importorskip("matplotlib")
    names = [f"a_run_with_a_long_name_of_which_there_are_many_{number:02}" for number in range(count)]
    picture.draw(dict.fromkeys(names, LINES), "steps", tmp_path / "c.svg")
    texts = re.findall(
        r'(?:y="([\d.]+)"|translate\([\d.]+ ([\d.]+)\))[^>]*>([^<]+)</text>', (tmp_path / "c.svg").read_text()
    )
    heights = {text: float(one or other) for one, other, text in texts}
    assert [text for *_, text in texts if text in names] == names
    assert max(heights[name] for name in names) < heights["Loss (nats per token)"]


def test_a_picture_of_another_format_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"c\.gif, but must end in \.png, \.svg or \.pdf"):
        picture.draw({"a": LINES}, "steps", tmp_path / "c.gif")


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(UserError, match=r"cannot write .*none/c\.png: No such file"):
        picture.draw({"a": LINES}, "steps", tmp_path / "none" / "c.png")


def test_without_matplotlib_the_way_to_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'hipgpt\[plot\]'"):
        picture.draw({"a": LINES}, "steps", tmp_path / "c.png")


# ---- summaries ---------------------------------------------------------------------------------------------------


def test_a_run_is_summed_up(run):
    save(run, 20)
    it = summary(run)
    assert (it.state, it.step, it.steps, it.loss) == ("stopped", 20, 30, 3.0)
    assert (it.best_val_loss, it.best_step, it.last_val_loss, it.last_val_step) == (4.25, 20, 4.5, 30)
    assert (it.tokens, it.seconds, it.model) == (1920, 4.5, MODEL)
    assert json.loads(json.dumps(it.to_json()))["model"]["embed_dim"] == 4


def test_a_run_that_has_taken_all_steps_is_done_and_one_that_another_process_writes_to_is_training(run):
    save(run, 30)
    assert summary(run).state == "done"
    with run.lock():
        assert summary(run).state == "training"
    assert summary(run).state == "done"


def test_a_run_that_trains_is_where_its_log_is_also_before_its_first_checkpoint(run):
    with run.lock():
        it = summary(run)
        assert (it.state, it.step, it.steps, it.model) == ("training", 30, None, None)
        assert "  30/?  " in listing.table([it])[1]
        assert listing.page(run, it)[-1].endswith(f"hipgpt plot r --runs-dir {run.path.parent}")
        config = TrainConfig(total_steps=40, device="CPU, 2 threads")
        checkpoint.save_best(run, 20, MODEL, config, dict(initial_weights(MODEL, 0)), val_loss=4.25)
        it = summary(run)
        assert (it.state, it.damage, it.step, it.steps, it.model) == ("training", None, 30, 40, MODEL)
        save(run, 20)
        assert summary(run).step == 30
    assert summary(run).step == 20, "where it goes on"


@pytest.mark.parametrize("last", [{"loss": None, "grad_norm": 1.0}, {"loss": 3.0, "grad_norm": None}])
def test_a_run_whose_last_loss_or_gradient_is_not_finite_has_diverged(run, last):
    save(run, 20)
    log(run, [*LINES, {"step": 40, **last}])
    it = summary(run)
    assert (it.state, it.loss) == ("diverged", 3.0)
    assert "Next:        train it anew with a lower --lr (it was 0.0003)" in listing.page(run, it)


def test_a_run_whose_checkpoint_does_not_load_is_damaged_and_says_why(run):
    save(run, 20)
    path = run.config_path(20)
    path.write_text(path.read_text().replace('"embed_dim": 4', '"embed_dim": "x"'))
    it = summary(run)
    assert (it.state, it.model) == ("damaged", None)
    assert "model.embed_dim is 'x', but must be an integer" in it.damage
    page = "\n".join(listing.page(run, it))
    assert it.damage in page
    assert "--resume" not in page


def test_a_run_without_a_model_is_only_tokenized(run):
    run.metrics_path.unlink()
    it = summary(run)
    assert (it.state, it.step, it.loss, it.seconds) == ("tokenized", None, None, None)
    assert listing.page(run, it)[-1].endswith(f"hipgpt train {run.options}")


def test_the_page_names_the_settings_that_are_not_the_defaults_as_flags(run):
    save(run, 20, optimizer="muon", recompute=True, batch_size=3)
    page = "\n".join(listing.page(run, summary(run)))
    (settings,) = re.findall("^Settings: +(.*)$", page, re.MULTILINE)
    assert settings == (
        "--batch 3, --recompute, --steps 30, --optimizer muon, --eval-every 0, --seq 4, --dim 4, --heads 1, --ff 4, "
        "--layers 1"
    )
    assert re.search("^Checkpoints: step 20 \\(", page, re.MULTILINE)
    assert page.endswith(f"hipgpt train {run.options} --resume")


def test_a_narrow_terminal_gets_facts_that_go_on_below_their_beginning_and_a_command_that_can_be_copied(run):
    save(run, 20, optimizer="muon", recompute=True, batch_size=3)
    it = summary(run)
    whole, page = listing.page(run, it), listing.page(run, it, 40)
    start = page.index("Settings:    --batch 3, --recompute,")
    assert page[start + 1 : start + 3] == [f"{'':13}--steps 30, --optimizer", f"{'':13}muon, --eval-every 0, --seq"]
    assert page[-1] == whole[-1]
    assert all(len(line) <= 40 for line in page[1:-1])
    assert " ".join(" ".join(page).split()) == " ".join(" ".join(whole).split())


def test_the_device_on_which_a_run_trained_last_is_told(run):
    save(run, 10, device="CPU, 2 threads")
    save(run, 20, device="4 x NVIDIA H200 (sm_90a), bf16")
    it = summary(run)
    assert it.to_json()["device"] == "4 x NVIDIA H200 (sm_90a), bf16"
    assert "  4 x NVIDIA H200 (sm_90a), bf16  " in listing.table([it])[1]
    page = listing.page(run, it)
    assert "Device:      4 x NVIDIA H200 (sm_90a), bf16" in page
    assert not any("--device" in line for line in page)


def test_a_model_that_has_learned_conversations_is_to_be_talked_with(run):
    save(run, 30)
    run.counted_path.touch()
    assert listing.page(run, summary(run))[-1].endswith(f"hipgpt chat {run.options} --best")


def test_the_loss_of_a_run_that_diverges_does_not_widen_the_table(run):
    row = listing.table([replace(summary(run), loss=8201224376320.0)])[1]
    assert "  8.2e+12  " in row


def test_a_narrow_terminal_gets_the_most_important_columns_and_the_names_of_the_others(run):
    it = summary(run)
    whole = listing.table([it])
    width = len(whole[0])
    assert listing.table([it], width) == whole
    *rows, _, note = listing.table([it], width - 1)
    assert [row.rstrip() for row in rows] == [row.rpartition("  ")[0].rstrip() for row in whole]
    assert note == "A wider terminal shows SIZE too"
    header, _, _, *note = listing.table([it], 40)
    assert re.split("  +", header) == ["RUN", "STATE", "STEP", "LOSS"]
    assert note == [
        "A wider terminal shows BEST VALIDATION,", "LAST VALIDATION, TOKENS, TIME, DEVICE,", "PARAMETERS, SIZE too",
    ]  # fmt: skip


def test_the_table_has_a_dash_for_whatever_is_not_there(run):
    it = summary(run)
    header, row = listing.table([replace(it, loss=None, tokens=None, seconds=None, last_val_loss=None)])
    assert re.split("  +", header) == list(listing.HEADER)
    assert re.split("  +", row.strip())[:8] == ["r", "tokenized", "-", "-", "4.2500 at 20", "-", "-", "-"]
    assert len(header) == len(row)
