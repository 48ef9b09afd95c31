"""A run: its valid names, the paths of its files, and the lock that admits one training process."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt.errors import UserError
from gpt.run import NAME_LIMIT, Run, list_runs
from gpt.system.files import atomic_path
from tests.support import ROOT

HOLD_THE_LOCK = """
import sys, time
from pathlib import Path
from gpt.run import Run
with Run("a", Path(sys.argv[1])).lock():
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def trainer(tmp_path):
    """Another process that holds the lock of run `a`."""
    command = [sys.executable, "-c", HOLD_THE_LOCK, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout.readline() == b"locked\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("name", ["a", "shakespeare", "GPT-2_v1.0", "2", "_", "a..b", "console", "x" * NAME_LIMIT])
def test_a_name_of_letters_digits_dots_dashes_and_underscores_is_a_directory_under_the_root(name):
    assert Run(name).path == Path("checkpoints") / name
    assert Run(name, Path("elsewhere")).path == Path("elsewhere") / name


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "../a", "a/b", "/a", "a\\b", "a b", "a\n", "a\0", "ä", "a:b", ".a", "-a", "x" * (NAME_LIMIT + 1),
        "a.", "con", "AUX", "nul.x", "com1", "Lpt9.tar.gz",
    ],
)  # fmt: skip
def test_any_other_name_is_refused_in_one_line(name):
    with pytest.raises(UserError, match=r"^--run-name .*, but must .*$"):
        Run(name)


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("checkpoints/first", "give first with --runs-dir checkpoints"),
        ("../some where/a/", "give a with --runs-dir '../some where'"),
        ("first/", "give first"),
    ],
)
def test_a_path_in_the_place_of_a_name_is_refused_with_the_options_that_it_stands_for(path, advice):
    with pytest.raises(UserError, match=f"^--run-name is '{path}', but must consist of .*: {advice}$"):
        Run(path)


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("checkpoints/r", "--run-name r"),
        ("{here}/checkpoints/r", "--run-name r"),
        ("linked/r", "--run-name r"),
        ("some where/r", "--run-name r --runs-dir 'some where'"),
        ("r", "--run-name r --runs-dir ."),
    ],
)
def test_commands_for_a_run_name_its_directory_only_if_they_would_not_find_it(tmp_path, monkeypatch, path, options):
    monkeypatch.chdir(tmp_path)
    Path("checkpoints").mkdir()
    Path("linked").symlink_to("checkpoints")
    assert Run.at(Path(path.format(here=tmp_path))).options == options


def test_the_longest_name_leaves_room_for_the_longest_temporary_file(tmp_path):
    run = Run("x" * NAME_LIMIT, tmp_path)
    run.path.mkdir()
    with atomic_path(run.optimizer_path(10**12)) as temporary:
        temporary.write_text("fits")
    assert run.optimizer_path(10**12).exists()


def test_naming_a_run_creates_nothing(tmp_path):
    run = Run("a", tmp_path)
    assert run.steps() == []
    assert run.metrics() == []
    assert run.disk_bytes() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_new_name_says_when_and_is_a_valid_name():
    assert re.fullmatch(r"run_20\d{6}_\d{6}_[0-9a-f]{4}", Run.new_name())
    Run(Run.new_name())


def test_runs_that_start_in_one_second_have_different_names():
    assert Run.new_name() != Run.new_name()


def test_files_are_named_after_the_run_and_the_step():
    run = Run("a")
    assert run.weights_path(100).name == "a_step100.safetensors"
    assert run.optimizer_path(100).name == "a_step100_optimizer.safetensors"
    assert run.config_path(100).name == "a_step100_config.json"
    assert {path.parent for path in (run.tokenizer_path, run.tokens_path, run.weights_path(1))} == {run.path}


def test_a_run_opens_in_a_directory_of_any_name():
    run = Run.at(Path("/somewhere/my runs"))
    assert run.name == "my runs"
    assert run.tokenizer_path == Path("/somewhere/my runs/tokenizer.json")


@pytest.mark.parametrize("name", ["a", "a.b", "a_step3"])
def test_steps_are_those_that_have_a_config_in_numerical_order(tmp_path, name):
    run = Run(name, tmp_path)
    run.path.mkdir()
    for step in (1000, 0, 20):
        run.config_path(step).touch()
    for other in ("_step7.safetensors", "_step07_config.json", "_step7_config.json.bak", "_best_step7_config.json"):
        (run.path / f"{name}{other}").touch()
    (run.path / "latest_config.json").touch()
    assert run.steps() == [0, 20, 1000]


def test_steps_from_before_a_run_was_renamed_are_its_own(tmp_path):
    run = Run("new", tmp_path)
    run.path.mkdir()
    for file in ("old_step5_config.json", "old_step10_config.json", "old_best_step7_config.json"):
        (run.path / file).touch()
    run.config_path(20).touch()
    assert run.steps() == [5, 10, 20]
    assert run.weights_path(5).name == "old_step5.safetensors"
    assert run.config_path(20).name == "new_step20_config.json"


@pytest.mark.parametrize("name", ["x_best", "renamed"])
def test_the_steps_of_a_run_whose_name_ends_in_best_are_not_best_checkpoints(tmp_path, name):
    run = Run(name, tmp_path)
    run.path.mkdir()
    for part in ("_config.json", ".safetensors", "_optimizer.safetensors"):
        (run.path / f"x_best_step5{part}").touch()
    (run.path / "x_best_best_step7_config.json").touch()
    assert run.steps() == [5]
    assert run.parts(best=True).keys() == {("x_best_best", 7)}


def test_metrics_are_the_logged_lines_without_a_truncated_one(tmp_path):
    run = Run("a", tmp_path)
    run.path.mkdir()
    run.metrics_path.write_text(json.dumps({"step": 1, "loss": 2.5}) + "\n" + '{"step": 2, "lo')
    assert run.metrics() == [{"step": 1, "loss": 2.5}]


@pytest.mark.parametrize(
    "line",
    [
        '{"step": "1"}', '{"step": -1}', '{"step": 1, "loss": "low"}', '{"step": 1, "val_loss": 1e999}',
        '{"step": 1, "loss": NaN}', '{"step": 1, "step": 2}', '{"step": 1, "time": null}', "[" * 100_000,
        '{"step": 1, "loss": 1' + "0" * 400 + "}", '{"step": ' + "9" * 5000 + "}", '"' + "x" * 3_000_000 + '"',
    ],
)  # fmt: skip
def test_lines_that_no_run_writes_are_passed_over(tmp_path, line):
    run = Run("a", tmp_path)
    run.path.mkdir()
    run.metrics_path.write_text(f'{{"step": 1, "loss": 2.5}}\n{line}\n{{"step": 2, "loss": null}}\n')
    assert run.metrics() == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": None}]


def test_a_pipe_in_the_place_of_the_metrics_is_not_read(tmp_path):
    run = Run("a", tmp_path)
    run.path.mkdir()
    os.mkfifo(run.metrics_path)
    assert run.metrics() == []


def test_the_size_on_disk_counts_each_file_once_and_follows_no_link(tmp_path):
    (tmp_path / "outside").write_bytes(bytes(10_000))
    run = Run("a", tmp_path)
    (run.path / "export").mkdir(parents=True)
    run.weights_path(1).write_bytes(bytes(3000))
    (run.path / "export" / "model.safetensors").write_bytes(bytes(500))
    run.latest_weights_path.symlink_to("a_step1.safetensors")
    (run.path / "elsewhere").symlink_to(tmp_path)
    assert 3500 <= run.disk_bytes() < 4000  # a link takes as many bytes as its target's name


def test_runs_are_the_directories_that_hold_a_tokenizer_tokens_or_a_checkpoint_by_name(tmp_path):
    for file in (
        "d/tokenizer.json", "b/tokens.bin", "c/c_step5_config.json", "a/latest_config.json",
        "empty/.lock", "notes/readme.txt", "not a run/tokenizer.json", ".hidden/tokenizer.json", "file",
    ):  # fmt: skip
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.touch()
    runs = list_runs(tmp_path)
    assert [run.name for run in runs] == ["a", "b", "c", "d"]
    assert [run.path for run in runs] == [tmp_path / name for name in "abcd"]
    assert list_runs(tmp_path / "missing") == []


def test_a_run_that_another_process_writes_to_is_refused_after_a_few_seconds(tmp_path, trainer, monkeypatch):
    now = 100.0

    def sleep(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr("gpt.run.time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    message = r"^run a is being written to by another process: .*$"
    with pytest.raises(UserError, match=message), Run("a", tmp_path).lock():
        pass
    assert 2 < now - 100 < 5, "a refused command waits no longer than this"
    with Run("b", tmp_path).lock():
        pass


def test_a_process_that_holds_the_lock_for_a_moment_does_not_make_another_fail(tmp_path, trainer, monkeypatch):
    def sleep(seconds):
        trainer.kill()
        trainer.wait()

    monkeypatch.setattr("gpt.run.time", SimpleNamespace(monotonic=lambda: 100.0, sleep=sleep))
    with Run("a", tmp_path).lock():
        assert trainer.poll() is not None


def test_a_killed_process_releases_its_lock(tmp_path, trainer):
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    with Run("a", tmp_path).lock():
        pass


def test_the_lock_is_released_when_the_work_under_it_fails(tmp_path):
    run = Run("a", tmp_path)
    with pytest.raises(KeyboardInterrupt), run.lock():
        raise KeyboardInterrupt
    with run.lock(), pytest.raises(UserError), run.lock():
        pass


def test_the_lock_removes_the_directories_above_too_if_they_were_made_for_it_and_are_empty(tmp_path):
    with Run("a", tmp_path / "my" / "runs").lock():
        pass
    assert not (tmp_path / "my").exists()
    (tmp_path / "my").mkdir()
    with Run("a", tmp_path / "my" / "runs").lock():
        (tmp_path / "my" / "runs" / "notes.txt").touch()
    assert (tmp_path / "my" / "runs").is_dir()
    (tmp_path / "empty").mkdir()
    with Run("a", tmp_path / "empty").lock():
        pass
    assert (tmp_path / "empty").is_dir(), "the user has made it"


def test_the_lock_creates_the_directory_and_leaves_it_only_with_something_in_it(tmp_path):
    run = Run("a", tmp_path / "checkpoints")
    with run.lock():
        assert run.path.is_dir()
        assert list_runs(tmp_path / "checkpoints") == []
    assert not run.path.exists()
    with run.lock():
        run.tokens_path.touch()
    assert run.tokens_path.exists()


def test_taking_the_lock_removes_half_written_files_of_a_killed_process_and_nothing_else(tmp_path):
    run = Run("a", tmp_path)
    run.path.mkdir()
    stale = {".a_step3.safetensors.x1y2z3_4.tmp", ".latest_config.json.4711.tmp", ".tokens.bin.k2.tmp", ".tmpAb3dEf"}
    others = {".tmp", "a.tmp", ".hidden", "tokens.bin"}
    for name in stale | others:
        (run.path / name).touch()
    with run.lock():
        assert {path.name for path in run.path.iterdir()} == others | {".lock"}


def test_an_error_inside_the_lock_is_not_mistaken_for_one_of_the_lock(tmp_path):
    with pytest.raises(FileNotFoundError), Run("a", tmp_path).lock():
        (tmp_path / "missing").read_bytes()


@pytest.mark.parametrize("read_only", [".", "a"])
def test_a_read_only_directory_is_refused_in_one_line(read_only):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "a").mkdir()
        root.chmod(0o755)
        (root / read_only).chmod(0o555)
        run = Run("new" if read_only == "." else "a", root)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)  # the user nobody, because root ignores permissions
            with pytest.raises(UserError, match=f"^cannot write to {run.path}: Permission denied$"), run.lock():
                pass
        finally:
            os.seteuid(user)
            (root / read_only).chmod(0o755)


@pytest.mark.parametrize(("kind", "fault"), [("file", "is not a directory"), ("link", "is a broken link")])
def test_something_else_in_the_place_of_the_directory_is_refused_in_one_line(tmp_path, kind, fault):
    path = tmp_path / "a"
    if kind == "link":
        path.symlink_to(tmp_path / "gone")
    else:
        path.touch()
    message = f"^{path} {fault}: remove it, or take another --run-name$"
    with pytest.raises(UserError, match=message), Run("a", tmp_path).lock():
        pass
