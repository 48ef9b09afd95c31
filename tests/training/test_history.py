"""metrics.jsonl: its lines, those that a resumed run keeps, and the meaning of its validation losses."""

import json
import math

import pytest

from gpt.history import History, lowest, validation_losses
from gpt.run import Run

NAN = math.nan


@pytest.fixture
def run(tmp_path):
    run = Run("r", tmp_path)
    run.path.mkdir()
    return run


def lines(run):
    return [json.loads(line) for line in run.metrics_path.read_text().splitlines()]


def evaluated(run, losses):
    history = History(run, 0, tokens_per_step=8, train_tokens=100)
    for number, loss in enumerate(losses, start=1):
        history.record(10 * number, seconds=number, val_loss=loss)
    return history


def test_a_line_says_how_long_and_on_how_much_text_the_run_has_trained(run):
    history = History(run, 0, tokens_per_step=8, train_tokens=100)
    history.record(25, seconds=1.25, loss=2.0, sample="the cat")
    assert lines(run) == [{"step": 25, "time": 1.25, "tokens": 200, "passes": 2.0, "loss": 2.0, "sample": "the cat"}]


def test_values_that_are_not_finite_become_null_because_json_lacks_nan(run):
    evaluated(run, [NAN, math.inf])
    assert [line["val_loss"] for line in lines(run)] == [None, None]


def test_a_resumed_run_drops_the_lines_after_its_step_and_counts_on_from_those_before(run):
    history = History(run, 0, tokens_per_step=8, train_tokens=100)
    for step in (10, 20, 30):
        history.record(step, seconds=step / 10, loss=1.0)
    resumed = History(run, 20, tokens_per_step=16, train_tokens=100)  # with a larger batch
    assert [line["step"] for line in lines(run)] == [10, 20]
    assert resumed.seconds == 2.0
    resumed.record(25, seconds=2.5, loss=1.0)
    assert (lines(run)[-1]["tokens"], lines(run)[-1]["passes"]) == (20 * 8 + 5 * 16, 2.4)


def test_a_run_logged_before_there_were_times_and_tokens_goes_on(run):
    run.metrics_path.write_text('{"step": 10, "loss": 1.0}\n{"step": 10, "val_loss": 2.0}\n')
    history = History(run, 10, tokens_per_step=8, train_tokens=100)
    assert (history.evaluations, history.seconds) == ([(10, 2.0)], 0.0)
    history.record(20, seconds=0.5, loss=1.0)
    assert lines(run)[-1]["tokens"] == 160


def test_evaluations_on_another_held_out_part_of_the_text_do_not_count(run):
    """Their losses are not comparable. Otherwise --patience could end a run before its first evaluation."""
    first = History(run, 0, tokens_per_step=8, train_tokens=100, val_fraction=0.1)
    for step, loss in ((10, 2.0), (20, 2.5), (30, 2.6)):
        first.record(step, seconds=1.0, val_loss=loss)
    assert History(run, 30, 8, 100, val_fraction=0.1).without_best == 2
    other = History(run, 30, tokens_per_step=8, train_tokens=90, val_fraction=0.2)
    assert (other.evaluations, other.without_best, other.memorizes) == ([], 0, False)
    assert other.has_evaluated(30)
    other.record(40, seconds=2.0, val_loss=3.0)
    assert other.evaluations == History(run, 40, 8, 90, val_fraction=0.2).evaluations == [(40, 3.0)]
    assert [line["val_fraction"] for line in lines(run)] == [0.1, 0.1, 0.1, 0.2]


def test_a_line_without_the_held_out_fraction_counts_for_any(run):
    run.metrics_path.write_text('{"step": 10, "val_loss": 2.0}\n')
    assert History(run, 10, 8, 100, val_fraction=0.2).evaluations == [(10, 2.0)]


@pytest.mark.parametrize(
    ("losses", "without_best"),
    [
        ([], 0),
        ([3.0], 0),
        ([3.0, 2.0], 0),
        ([3.0, 2.0, 2.5], 1),
        ([3.0, 2.0, 2.5, 2.1, 2.7], 3),
        ([2.0, 2.0, 2.0], 2),  # an equal loss is not a new best
        ([3.0, NAN, 2.5, 2.6], 1),
        ([NAN, NAN], 2),
    ],
)
def test_evaluations_are_counted_since_the_best(run, losses, without_best):
    for history in (evaluated(run, losses), History(run, 10 * len(losses), 8, 100)):  # as logged, as read back
        assert history.without_best == without_best


@pytest.mark.parametrize(
    ("losses", "memorizes"),
    [
        ([], False),
        ([2.0, 2.5, 2.6], False),
        ([3.0, 2.0, 2.5, 2.6, 2.7], True),
        ([3.0, 2.0, 2.5, 2.6, 2.7, 2.8], False),  # already shown
        ([2.0, 2.5, 2.6, 2.7, 2.6, 2.7, 2.8, 2.9], False),  # still shown, without a new best
        ([2.0, 2.5, 2.6, 2.7, 1.9, 2.7, 2.8, 2.9], True),
        ([2.0, 2.5, 2.4, 2.6, 2.7], False),
        ([2.0, 2.001, 2.002, 2.003], False),  # by chance
        ([2.0, 2.001, 2.002, 2.003, 2.03], True),
        ([2.50, 2.52, 2.51, 2.53, 2.54, 2.56], True),
        ([2.0, 2.5, NAN, 2.6, 2.7], False),
        ([NAN, NAN, NAN, NAN], False),
    ],
)
def test_a_model_memorizes_when_its_loss_has_risen_three_times_in_a_row_since_the_best(run, losses, memorizes):
    for history in (evaluated(run, losses), History(run, 10 * len(losses), 8, 100)):
        assert history.memorizes == memorizes


def test_the_lowest_is_the_first_of_equals_and_finite():
    assert lowest([(1, NAN), (2, 3.0), (3, 2.0), (4, 2.0)]) == (3, 2.0)
    assert lowest([(1, NAN)]) is None


def test_a_validation_loss_that_was_not_finite_is_read_as_nan_and_one_that_is_no_number_not_at_all(run):
    values = ("null", '"x"', "[]", "true")
    lines = [f'{{"step": {step}, "val_loss": {value}}}\n' for step, value in enumerate(values, start=5)]
    run.metrics_path.write_text("".join(lines))
    ((step, loss),) = validation_losses(run.metrics())
    assert step == 5
    assert math.isnan(loss)
