"""Trackers get every line of a run's log once, whatever happens to the run or to them."""

import doctest
import json
import math
import signal
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt.errors import UserError
from gpt.history import History
from gpt.metrics import trackers
from gpt.metrics.trackers import following as training_side
from gpt.metrics.trackers import log as log_module
from gpt.metrics.trackers.follower import alone, follow
from gpt.metrics.trackers.following import check_tracker, following
from gpt.metrics.trackers.interface import PROJECT, Opening
from gpt.metrics.trackers.log import Log
from gpt.run import Run

SETTINGS = {"embed_dim": 8, "learning_rate": 0.1, "optimizer": "muon", "sample_prompt": None, "device": "CPU"}
SAMPLE = "the cat\n    sat <b>"


@pytest.fixture
def run(tmp_path):
    run = Run("r", tmp_path / "checkpoints")
    run.path.mkdir(parents=True)
    return run


def trained(run, after, upto, loss=1.0):
    """Let the run go on after a step, as a resumed one does: lines of steps up to `upto`, two of each step."""
    history = History(run, after, tokens_per_step=8, train_tokens=100)
    yield len(run.metrics())
    for step in range(after + 10, upto + 1, 10):
        history.record(step, seconds=step, loss=loss / step, lr=0.5)
        history.record(step, seconds=step, val_loss=math.nan, sample=SAMPLE)


def tracked(tracker, run, after, upto, settings=SETTINGS, loss=1.0, is_done=False):
    """Let the run go on in this way, with the tracker behind it."""
    training = trained(run, after, upto, loss)
    opened = tracker(Opening(run.path, next(training), settings))
    log = Log(run.metrics_path)
    if first := log.new():
        opened.write(first)
    assert list(training) == []
    opened.write(log.new())
    opened.close(is_done)
    return opened


class Listening:
    """The output of a command."""

    def __init__(self):
        self.lines = []
        self.line = self.lines.append


# ---- the log -------------------------------------------------------------------------------------------------------


def test_the_examples_hold():
    assert doctest.testmod(log_module) == (0, 2)


def test_a_log_gives_each_line_once_and_a_line_that_is_being_written_later(run):
    log = Log(run.metrics_path)
    assert log.new() == []
    run.metrics_path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert log.new() == [{"step": 1}, {"step": 2}]
    assert log.new() == []
    run.metrics_path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\nrubbish\n')
    assert log.new() == [{"step": 3}]


def test_a_log_ends_when_another_one_takes_its_place(run):
    """The run was killed and is resumed, while its follower still had lines to hand on."""
    log = Log(run.metrics_path)
    assert len(list(trained(run, 0, 20))) == 1
    assert len(log.new()) == 4
    list(trained(run, 10, 40))
    assert log.new() == []


def test_a_follower_waits_for_the_one_before_it(tmp_path):
    at_work, ended = threading.Event(), threading.Event()

    def first():
        with alone(tmp_path):
            at_work.set()
            time.sleep(0.2)
            ended.set()

    thread = threading.Thread(target=first)
    thread.start()
    at_work.wait()
    with alone(tmp_path):
        assert ended.is_set()
    thread.join()


@pytest.mark.parametrize(("how", "is_done"), [("done", True), ("stopped", False), ("", False)])
def test_a_follower_hands_on_all_lines_the_last_ones_after_the_end(run, how, is_done):
    training = trained(run, 0, 20)
    seen = []

    class Tracker:
        place = "there"

        def write(self, lines):
            seen.extend(line["step"] for line in lines)

        def close(self, is_done):
            seen.append(is_done)

    said, ends = [], iter([None, how])

    def wait(_seconds):
        end = next(ends)
        if end is not None:
            list(training)
        return end

    follow(Opening(run.path, next(training), {}), lambda _: Tracker(), wait, said.append)
    assert seen == [10, 10, 20, 20, is_done]
    assert said == ["Track:  there"]


# ---- a follower that fails ------------------------------------------------------------------------------------------


def test_a_tracker_that_is_not_installed_is_refused_with_the_way_to_it(monkeypatch):
    monkeypatch.setattr(training_side, "find_spec", lambda _: None)
    for tracker, package in trackers.PACKAGES.items():
        with pytest.raises(UserError, match=rf"--track {tracker} needs {package}: pip install 'hipgpt\[{tracker}\]'"):
            check_tracker(tracker)
    with pytest.raises(UserError, match="--track is mlflow, but must be one of tensorboard, wandb, trackio"):
        check_tracker("mlflow")


def test_a_tracker_that_raises_costs_one_line(run, monkeypatch):
    output = Listening()
    with following("nobody", run, SETTINGS, output):
        pass
    (note,) = output.lines
    assert note.startswith("Note: --track nobody: ModuleNotFoundError: No module named 'gpt.metrics.trackers.nobody'")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import time; time.sleep(60)", ["Waiting for t, 0 s at most", "has not finished"]),
        ("import os; os.abort()", [f"its process has ended with status {-signal.SIGABRT}"]),
    ],
)
def test_a_tracker_that_hangs_or_crashes_costs_one_line(run, monkeypatch, code, said):
    monkeypatch.setattr(training_side, "COMMAND", [sys.executable, "-c", code])
    monkeypatch.setattr(training_side, "PATIENCE", 0.2)
    monkeypatch.setattr(training_side, "LONG", 0.2 if "sleep" in code else 20)
    output = Listening()
    with following("t", run, SETTINGS, output) as done:
        done()
    assert len(output.lines) == len(said)
    for line, part in zip(output.lines, said, strict=True):
        assert part in line


def test_a_process_that_cannot_be_started_costs_one_line(run, monkeypatch):
    monkeypatch.setattr(training_side, "COMMAND", ["/none"])
    output = Listening()
    with following("t", run, SETTINGS, output):
        pass
    assert output.lines == [
        "Note: --track t: no process can be started for it (No such file or directory). The run goes on"
    ]


# ---- TensorBoard ---------------------------------------------------------------------------------------------------


def events(run):
    """What TensorBoard reads in the run's directory."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = reader.EventAccumulator(str(run.path))
    accumulator.Reload()
    return accumulator


@pytest.fixture
def tensorboard(monkeypatch):
    if "torch" not in sys.modules:  # as a follower does, because its import takes long
        monkeypatch.setitem(sys.modules, "torch", None)
    pytest.importorskip("tensorboardX")
    from gpt.metrics.trackers.tensorboard import TensorBoard

    return TensorBoard


@pytest.mark.peers
def test_tensorboard_reads_metrics_samples_and_settings_and_each_step_once_after_a_kill(run, tensorboard):
    tracked(tensorboard, run, 0, 30)
    tracked(tensorboard, run, 20, 40, loss=2.0, is_done=True)
    found = events(run)
    assert [(each.step, each.value) for each in found.Scalars("train/loss")] == [
        (step, pytest.approx(loss / step)) for step, loss in ((10, 1), (20, 1), (30, 2), (40, 2))
    ]
    assert math.isnan(found.Scalars("val/loss")[0].value)
    times = [each.wall_time for each in found.Scalars("train/loss")]
    assert times == pytest.approx([times[0] + seconds for seconds in (0, 10, 20, 30)])
    sample = found.Tensors("sample/text_summary")[0].tensor_proto.string_val[0].decode()
    assert sample == "    the cat\n        sat <b>\n"
    start = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"embed_dim" in start
    assert b"muon" in start


@pytest.mark.peers
def test_a_tensorboard_that_is_open_forgets_the_steps_after_the_checkpoint(run, tensorboard):
    tracked(tensorboard, run, 0, 30)
    found = events(run)
    assert len(found.Scalars("train/loss")) == 3
    (old,) = run.path.glob("events.*")
    old.rename(old.with_name(old.name.replace("tfevents.1", "tfevents.0")))  # a second ago
    tracked(tensorboard, run, 10, 20, loss=2.0)
    assert [each.step for each in events(run).Scalars("train/loss")] == [10, 20]


@pytest.mark.peers
def test_a_run_that_is_killed_is_tracked_to_its_last_line_and_resumed_without_duplicates(hipgpt, tmp_path, tensorboard):
    (tmp_path / "text.txt").write_text("the cat sat on the mat and saw a dog .\n" * 60, encoding="utf-8")
    train = (
        "train", "--run-name", "r", "--device", "cpu", "--vocab-size", 60, "--dim", 8, "--heads", 2, "--ff", 12,
        "--layers", 1, "--seq", 8, "--batch", 2, "--log-every", 1, "--eval-every", 0, "--ckpt-every", 40,
        "--track", "tensorboard",
    )  # fmt: skip
    process = hipgpt.start(*train, "--data-path", "text.txt", "--steps", 100_000)
    for line in process.stdout:
        if line.startswith("[Step 100]"):
            break
    process.kill()
    process.wait()
    run = Run("r", tmp_path / "checkpoints")
    logged = [line["step"] for line in run.metrics()]
    hipgpt(*train, "--resume", "--steps", max(logged) + 5)
    assert [each.step for each in events(run).Scalars("train/loss")] == list(range(1, max(logged) + 6))


# ---- Weights & Biases ----------------------------------------------------------------------------------------------


@pytest.fixture
def wandb(monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    from gpt.metrics.trackers.wandb import Wandb

    return Wandb


def rows(path: Path) -> Iterator[dict]:
    """The rows of a file of wandb's: records in LevelDB's format of logs, behind 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, record = path.read_bytes(), 7, b""
    while place < len(data):
        if (left := 32768 - place % 32768) < 7:  # no header fits into the rest of a block
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            parsed, record = Record.FromString(record), b""
            if parsed.HasField("history"):
                items = parsed.history.item
                yield {(item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in items}


@pytest.mark.peers
def test_wandb_gets_each_line_once_after_a_kill_and_all_lines_anew_if_settings_change(run, wandb):
    def taken(lines):
        """Rows of each of wandb's runs, once there are so many in all: another process writes them."""
        deadline = time.monotonic() + 120
        while True:
            found = {}
            for path in sorted(run.path.glob("wandb/offline-run-*/*.wandb")):
                found.setdefault(path.stem, []).extend(rows(path))
            if sum(map(len, found.values())) >= lines:
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.05)

    def losses(rows):
        return [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]

    tracked(wandb, run, 0, 30)
    tracked(wandb, run, 20, 40, {**SETTINGS, "device": "another"})
    ((name, found),) = taken(8).items()
    assert losses(found) == [(10, 1 / 10), (20, 1 / 20), (30, 1 / 30), (40, 1 / 40)]
    assert [row["_step"] for row in found] == list(range(8))
    assert found[1]["sample._type"] == "html-file"
    tracked(wandb, run, 20, 30, {**SETTINGS, "learning_rate": 0.2}, loss=2.0)
    (other,) = taken(14).keys() - {name}
    assert losses(taken(14)[other]) == [(10, 1 / 10), (20, 1 / 20), (30, 2 / 30)]


# ---- trackio -------------------------------------------------------------------------------------------------------


@pytest.mark.peers
def test_trackio_has_each_step_once_after_a_kill_and_leaves_others_runs_alone(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    from gpt.metrics.trackers.trackio import Trackio

    other = Run("r", tmp_path / "others")
    other.path.mkdir(parents=True)
    tracked(Trackio, other, 0, 10)
    tracked(Trackio, run, 0, 30)
    tracked(Trackio, run, 20, 40, loss=2.0)
    ids = [json.loads((each.path / "trackio.json").read_text())["id"] for each in (other, run)]
    assert sorted(record["id"] for record in SQLiteStorage.get_run_records(PROJECT)) == sorted(ids)
    logs = SQLiteStorage.get_logs(PROJECT, "r", run_id=ids[1])
    assert [(row["step"], row["train/loss"]) for row in logs if "train/loss" in row] == [
        (10, 1 / 10), (20, 1 / 20), (30, 2 / 30), (40, 2 / 40),
    ]  # fmt: skip
    assert "the cat" in str(logs[1]["sample"])
    monkeypatch.setenv("TRACKIO_SPACE_ID", "me/mine")
    with pytest.raises(UserError, match="unset TRACKIO_SPACE_ID"):
        Trackio(Opening(run.path, 0, SETTINGS))
