"""The campaign's drivers can be believed: each one finds a bug that was made on purpose."""

import errno
import os
import subprocess
import sys
from dataclasses import replace
from random import Random

import pytest

if os.name == "nt":
    pytest.skip("the campaign needs Linux on x86-64", allow_module_level=True)

import fcntl

from gpt.commands import command_line
from tests.campaign import fault, kill, mutate, power, process, race
from tests.campaign.journal import Event, read
from tests.campaign.process import Order
from tests.campaign.scenarios import SCENARIOS, Lab, scattered

pytestmark = pytest.mark.slow  # they try seeds until the campaign has noticed

BY_NAME = {each.name: each for each in SCENARIOS}


@pytest.fixture(autouse=True, scope="module")
def _prepared(shim):
    environment = dict(os.environ)
    process.prepare()
    yield
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def lab():
    with Lab() as lab:
        lab.begin()
        yield lab


def failures(driver, scenario: str, trials: int, kind: str = "") -> int:
    """How many of a driver's trials of one scenario fail, by a failure of some kind, with hipgpt as it is now."""
    with pytest.MonkeyPatch.context() as patch, Lab() as lab:
        if hasattr(driver, "points"):
            patch.setattr(driver, "SCENARIOS", (BY_NAME[scenario],))
        found = filter(None, (driver.trial(lab, seed) for seed in range(trials)))
        return sum(kind in failure.kind for failure in found)


def test_every_call_that_changes_a_file_is_seen(lab):
    known = lab.known(BY_NAME["train"])
    renamed = {event.second for event in known.events if event.call == "rename"}
    assert renamed >= {name for name in known.content if "step6" in name and name.startswith("checkpoints/r/r_step")}
    written = {event.path: event.data for event in known.events if event.call == "write"}
    assert written["checkpoints/r/metrics.jsonl"] == (lab.trial / "checkpoints/r/metrics.jsonl").read_bytes()


def test_a_call_fails_or_the_process_dies_there(lab):
    lab.begin(lab.known(BY_NAME["export"]).before)
    command = BY_NAME["export"].command
    assert lab.run(command, Order(("fsync",), 1, "kill")).status == -9
    assert lab.run(command, Order(("fsync",), 1, "28")).errors.endswith("hf: No space left on device\n")
    assert lab.run(command, Order(("fsync",), 10_000, "kill")).status == 0
    assert lab.run(command, Order(("fsync",), 1, "kill"), real=True).status == 2, "it is there, so nothing is written"


def test_the_journal_tells_what_a_command_wrote(lab, tmp_path):
    lab.begin(lab.known(BY_NAME["export"]).before)
    assert not lab.run(BY_NAME["export"].command, Order(journal=tmp_path / "journal")).status
    disk = power.Disk(lab.known(BY_NAME["export"]).before)
    for event in read(tmp_path / "journal", lab.trial):
        disk.play(event)
    tree = disk.state(lambda: True, lambda file: file.content)
    assert tree["hf"] == {path.name: path.read_bytes() for path in (lab.trial / "hf").iterdir()}


RAW_MKDIR = """
import ctypes
MKDIR = 83  # on x86-64
libc = ctypes.CDLL(None, use_errno=True)
print(libc.syscall(MKDIR, b"made", 0o777), ctypes.get_errno())
"""


@pytest.mark.parametrize(
    ("order", "printed", "result"),
    [
        (Order(), "0 0", 0),
        (Order(("mkdir",), 1, str(errno.ENOSPC)), f"-1 {errno.ENOSPC}", -errno.ENOSPC),
    ],
)
def test_a_system_call_past_the_functions_of_the_c_library_is_seen_and_can_fail(tmp_path, order, printed, result):
    """As programs in Go and some of Rust make them: a library that only takes the place of mkdir() would miss it."""
    folder, journal = tmp_path / "folder", tmp_path / "journal"
    folder.mkdir()
    environment = {**os.environ, **replace(order, journal=journal).environment(folder)}
    command = [sys.executable, "-c", RAW_MKDIR]
    found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == printed.split()
    events = [event for event in read(journal, folder) if event.call == "mkdir"]
    assert events == [Event("mkdir", "made", "", result, b"")]
    assert (folder / "made").is_dir() == (result == 0)


def played(*events: tuple) -> power.Disk:
    disk = power.Disk.__new__(power.Disk)
    old = power.File(b"old", b"old", 3)
    disk.root = power.Folder({"a": old}, {"a": old})
    for call, path, *more in events:
        data = more.pop() if more and isinstance(more[-1], bytes) else b""
        disk.play(Event(call, path, more[0] if more else "", 0, data))
    return disk


WRITE = (("new", "b"), ("write", "b", b"new"))


def least(disk):
    return disk.state(lambda: False, lambda file: file.synced)


def most(disk):
    return disk.state(lambda: True, lambda file: file.content)


def test_a_power_cut_takes_what_was_not_synced():
    assert least(played(*WRITE)) == {"a": b"old"}
    assert most(played(*WRITE)) == {"a": b"old", "b": b"new"}
    assert least(played(*WRITE, ("fsync", "b"))) == {"a": b"old"}, "its name is not on the disk"
    assert least(played(*WRITE, ("fsyncdir", "."))) == {"a": b"old", "b": b""}, "its bytes are not on the disk"
    assert least(played(*WRITE, ("fsync", "b"), ("fsyncdir", "."))) == {"a": b"old", "b": b"new"}


def test_a_power_cut_takes_nothing_of_the_lines_before_the_one_that_was_appended():
    appended = played(("write", "a", b"old and"), ("fsync", "a"), ("write", "a", b"old and new")).root.entries["a"]
    for seed in range(30):
        assert all(each.startswith(b"old and") for each in power._contents(appended, Random(seed)))
    rewritten = played(("write", "a", b""), ("write", "a", b"old and new")).root.entries["a"]
    assert rewritten.kept == 0


def test_a_rename_over_a_file_leaves_the_old_one_or_the_new_one():
    renamed = (*WRITE, ("fsync", "b"), ("rename", "b", "a"))
    assert least(played(*renamed)) == {"a": b"old"}
    assert most(played(*renamed)) == {"a": b"new"}
    assert least(played(*renamed, ("fsyncdir", "."))) == {"a": b"new"}
    assert least(played(*WRITE, ("rename", "b", "a"), ("fsyncdir", "."))) == {"a": b""}, "renamed before it was synced"


def test_a_folder_that_is_not_on_the_disk_takes_all_that_is_in_it():
    made = (("mkdir", "d"), ("new", "d/f"), ("write", "d/f", b"x"), ("fsync", "d/f"), ("fsyncdir", "d"))
    assert least(played(*made)) == {"a": b"old"}
    assert least(played(*made, ("fsyncdir", "."))) == {"a": b"old", "d": {"f": b"x"}}


def test_as_many_seeds_as_there_are_points_visit_each_once():
    for count in (1, 2, 10, 97, 2007):
        assert sorted(scattered(range(count), seed) for seed in range(count)) == list(range(count))


def test_kills_find_a_folder_whose_files_are_put_into_place_one_by_one(lab, monkeypatch):
    before = failures(kill, "export", 40)

    def one_by_one(source, target, rename=os.rename):
        if not os.path.isdir(source):
            return rename(source, target)
        os.mkdir(target)
        for name in sorted(os.listdir(source)):
            rename(os.path.join(source, name), os.path.join(target, name))
        return os.rmdir(source)

    monkeypatch.setattr(os, "rename", one_by_one)
    assert failures(kill, "export", 40) > before


def test_faults_find_a_message_without_file_and_reason(lab, monkeypatch):
    before = failures(fault, "tokenize", 8)
    monkeypatch.setattr(command_line, "_fail", lambda _, fail=command_line._fail: fail("something went wrong"))
    assert failures(fault, "tokenize", 8) > before


def test_power_cuts_find_files_that_are_not_synced(lab, monkeypatch):
    gone = "a step that was reported saved is gone"
    before = failures(power, "train --resume", 24, gone)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    assert failures(power, "train --resume", 24, gone) > before


def test_damaged_files_find_an_error_that_nobody_expects(lab, monkeypatch):
    monkeypatch.setattr(mutate, "FILES", ("checkpoints/r/latest_config.json",))
    monkeypatch.setattr(mutate, "COMMANDS", ("generate --run-name r --prompt the",))
    before = failures(mutate, "export", 3)
    monkeypatch.setattr(command_line, "UserError", ZeroDivisionError)
    assert failures(mutate, "export", 3) > before


def test_races_find_a_lock_that_holds_nobody_off(lab, monkeypatch):
    monkeypatch.setattr(race, "RACES", tuple(each for each in race.RACES if str(each) == "train | train | train"))
    before = failures(race, "train", 4)
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert failures(race, "train", 4) > before


def test_damaging_one_document_leaves_the_values_for_the_next_as_they_were():
    data = b'{"a": [1, {"b": null}], "c": {"d": {}}, "e": "text"}'
    before = repr(mutate.ODD)
    for seed in range(2000):
        mutate._changed(data, Random(seed))
    assert repr(mutate.ODD) == before
