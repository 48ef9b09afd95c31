"""Files and directories appear whole or not at all, and the temporary ones of killed processes are removed."""

import errno
import fcntl
import os
import shutil
import signal
from pathlib import Path

import pytest

from gpt.errors import told
from gpt.system import files
from gpt.system.files import (
    atomic_directory,
    atomic_path,
    atomic_paths,
    commit,
    discard_leftovers,
    finish_commit,
    write_atomically,
)
from tests.support.processes import in_a_child


def names(directory) -> set[str]:
    return {path.name for path in directory.iterdir()}


def die(*_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_directory_appears_whole_with_the_directories_above_it(tmp_path):
    with atomic_directory(tmp_path / "a" / "b") as made:
        (made / "file").write_text("text")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "file").read_text() == "text"
    assert names(tmp_path / "a") == {"b"}


def test_an_empty_directory_is_replaced_and_a_full_one_is_left(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic_directory(tmp_path / "out") as made:
        (made / "file").touch()
    with pytest.raises(OSError, match="not empty"), atomic_directory(tmp_path / "out") as made:
        (made / "other").touch()
    assert names(tmp_path) == {"out"}
    assert names(tmp_path / "out") == {"file"}


def test_a_directory_that_cannot_be_filled_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_directory(tmp_path / "out") as made:
        (made / "no" / "file").touch()
    assert names(tmp_path) == set()


def test_leftovers_of_a_killed_process_are_removed_by_the_next_and_files_of_a_living_one_are_not(tmp_path):
    def write_half():
        with atomic_directory(tmp_path / "out") as made:
            (made / "file").touch()
            die()

    assert in_a_child(write_half) == -signal.SIGKILL
    (left,) = names(tmp_path)
    (tmp_path / ".out.living.tmp").mkdir()
    (tmp_path / ".other.12345678.tmp").mkdir()
    living = os.open(tmp_path / ".out.living.tmp", os.O_RDONLY)
    fcntl.flock(living, fcntl.LOCK_EX)
    with atomic_directory(tmp_path / "out") as made:
        (made / "file").touch()
    assert names(tmp_path) == {"out", ".out.living.tmp", ".other.12345678.tmp"}
    os.close(living)
    discard_leftovers(tmp_path / "out")
    assert names(tmp_path) == {"out", ".other.12345678.tmp"}


def test_several_files_take_their_places_in_order_and_the_last_one_always_belongs_to_the_others(tmp_path, monkeypatch):
    places = [tmp_path / name for name in "abc"]
    for place in places:
        place.write_text("old")

    def write(renames: int) -> None:
        replace, left = os.replace, [renames]

        def dying(source, target):
            left[0] -= 1
            if left[0] < 0:
                die()
            replace(source, target)

        monkeypatch.setattr(os, "replace", dying)
        with atomic_paths(*places) as temporaries:
            for temporary in temporaries:
                temporary.write_text("new")

    for renames in range(3):
        assert in_a_child(lambda renames=renames: write(renames)) == -signal.SIGKILL
        assert not places[-1].exists()
    write(3)
    assert [place.read_text() for place in places] == ["new"] * 3


def test_a_new_file_has_the_rights_that_any_new_file_has(tmp_path):
    (tmp_path / "plain").touch()
    with atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("text")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_message_of_an_error_names_the_file_and_not_its_temporary_name(tmp_path):
    def fail(path):
        raise PermissionError(13, "Permission denied", str(path))

    with pytest.raises(PermissionError) as error, atomic_path(tmp_path / "file") as temporary:
        fail(temporary)
    assert told(error.value.filename) == str(tmp_path / "file")


def test_a_text_that_does_not_fit_on_the_disk_leaves_the_old_one_and_is_named(tmp_path, monkeypatch):
    """The error of a failed write() lacks a file name, because the system knows only the number of the open file."""

    def fail(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_atomically(tmp_path / "file", "old")
    monkeypatch.setattr(Path, "write_text", lambda path, *_, **__: fail(path))
    with pytest.raises(OSError, match="No space") as error:
        write_atomically(tmp_path / "file", "new")
    assert error.value.filename == str(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == {"file"}


def test_a_commit_keeps_its_files_until_their_new_places_are_on_the_disk(tmp_path, monkeypatch):
    """A power cut may keep one directory's changes and lose the other's."""
    staged, committed, held = tmp_path / "staged", tmp_path / "committed", []
    staged.mkdir()
    for name in "ab":
        (staged / name).write_text("new")
    sync_directory = files.sync_directory

    def synced(path):
        held.append(names(committed) if committed.is_dir() else set())
        sync_directory(path)

    monkeypatch.setattr(files, "sync_directory", synced)
    commit(staged, committed)
    assert held[1] == {"a", "b"}


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_commit_that_is_cut_short_is_finished_by_the_next_process(tmp_path, monkeypatch, moves):
    staged, committed = tmp_path / "staged", tmp_path / "committed"
    staged.mkdir()
    for name in "ab":
        (staged / name).write_text("new")
        (tmp_path / name).write_text("old")
    replace, left = os.replace, [moves]

    def dying(source, target):
        left[0] -= 1
        if left[0] < 0:
            die()
        replace(source, target)

    def cut():
        os.replace = dying
        if moves == 2:
            shutil.rmtree = lambda *_, **__: die()
        commit(staged, committed)

    assert in_a_child(cut) == -signal.SIGKILL
    finish_commit(committed)
    assert names(tmp_path) == {"a", "b"}
    assert {(tmp_path / name).read_text() for name in "ab"} == {"new"}
