"""The lock: the operating system's or, on a file system without locks, a file that names the holder."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import time

import pytest

from gpt.system import lock
from gpt.system.lock import ABANDONED, NAMES, OWNER, Lock


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without flock, such as NFS without lockd."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


def owner(directory) -> dict:
    return json.loads((directory / OWNER).read_text())


def write_owner(directory, age=0.0, **changes) -> None:
    mine = {"host": lock.host(), "process": os.getpid(), "started": lock._started(os.getpid())}
    path = directory / OWNER
    path.write_text(json.dumps({**mine, **changes}))
    os.utime(path, (path.stat().st_mtime - age,) * 2)


@pytest.mark.parametrize("flock", [True, False])
def test_one_process_has_the_lock_and_the_next_gets_it_when_it_is_released(tmp_path, request, flock):
    if not flock:
        request.getfixturevalue("no_locks")
    first, second = Lock(tmp_path), Lock(tmp_path)
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()
    assert set(os.listdir(tmp_path)) <= NAMES


def test_a_lock_whose_file_is_removed_is_not_mistaken_for_the_one_that_is_there_now(tmp_path):
    first, second = Lock(tmp_path), Lock(tmp_path)
    assert first.acquire()
    (tmp_path / ".lock").unlink()  # a refused command does this when it removes the directory that it made
    assert second.acquire()
    assert not Lock(tmp_path).acquire()


def test_the_file_names_host_process_and_start(tmp_path, no_locks):
    held = Lock(tmp_path)
    assert held.acquire()
    assert owner(tmp_path)["process"] == os.getpid()
    assert held.holder() == f" (process {os.getpid()} on {owner(tmp_path)['host']})"
    held.release()
    assert not (tmp_path / OWNER).exists()


def test_the_lock_of_a_process_that_is_gone_is_taken_over_at_once_on_its_host(tmp_path, no_locks):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    write_owner(tmp_path, process=int(gone.stdout))
    assert Lock(tmp_path).acquire()


def test_a_process_with_the_number_of_one_that_is_gone_is_another_one(tmp_path, no_locks):
    write_owner(tmp_path, started="1")
    assert Lock(tmp_path).acquire()


def test_another_host_takes_a_lock_over_once_nobody_has_touched_it_for_long(tmp_path, no_locks):
    write_owner(tmp_path, host="elsewhere", age=ABANDONED - 5)
    assert not Lock(tmp_path).acquire()
    assert owner(tmp_path)["host"] == "elsewhere"
    write_owner(tmp_path, host="elsewhere", age=ABANDONED + 5)
    taken = Lock(tmp_path)
    assert taken.acquire()
    assert owner(tmp_path)["host"] == lock.host()
    taken.release()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"host": 1}'])
def test_a_file_that_names_nobody_is_taken_over_after_a_moment(tmp_path, no_locks, content):
    path = tmp_path / OWNER
    path.write_text(content)
    assert not Lock(tmp_path).acquire(), "its writer may be about to write"
    os.utime(path, (path.stat().st_mtime - 5,) * 2)
    assert Lock(tmp_path).acquire()


def test_the_holder_touches_the_file_as_long_as_it_holds_the_lock(tmp_path, no_locks, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    held = Lock(tmp_path)
    assert held.acquire()
    os.utime(tmp_path / OWNER, (0, 0))
    end = time.monotonic() + 30
    while (tmp_path / OWNER).stat().st_mtime == 0 and time.monotonic() < end:
        time.sleep(0.01)
    assert (tmp_path / OWNER).stat().st_mtime > 0
    held.release()
