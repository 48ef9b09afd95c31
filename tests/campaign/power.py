"""Power cuts: every state that may legally be on the disk after one, at every moment of a run.

The journal of a scenario is replayed up to some call, onto a model of a disk. This disk must keep the content that a
file had at its last fsync, and the entries that a folder had at the last fsync of that folder. All later changes of a
folder may be there or not, each by itself and in any combination, but a rename within a folder is one change. Bytes
that a file got after its last fsync may be there, or not, or in part, or as zeros. (Pillai et al. 2014, "All File
Systems Are Not Created Equal", found all of these on real file systems.)

A trial takes a moment, and one of these states: only the changes that must be there; all changes; or a random choice. A
step must still be there if the run had said that it was saved, in its last line or by logging a later step. Then
`Lab.judge` goes on. States that are alike are judged once.
"""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from random import Random

from tests.campaign.journal import Event
from tests.campaign.process import CHANGING
from tests.campaign.scenarios import SCENARIOS, Failure, Known, Lab, Scenario, scattered

RANDOM_STATES = 6  # for each moment, in addition to the two extremes
_LOGGED = re.compile(r"^\[Step ([0-9]+)\] Loss", re.MULTILINE)
_SAVED = re.compile(r"^(?:Done\.|Stopped at step|Ended at step)", re.MULTILINE)


@dataclass
class File:
    """A file's content, its content at the last sync, and the bytes at its beginning that were not written since."""

    content: bytes = b""
    synced: bytes = b""
    kept: int = 0

    def write(self, content: bytes) -> None:
        self.kept = min(self.kept, len(os.path.commonprefix([self.content, content])))
        self.content = content

    def sync(self) -> None:
        self.synced, self.kept = self.content, len(self.content)


@dataclass(frozen=True)
class Link:
    """A symbolic link, which is on the disk as soon as its entry is."""

    target: str


@dataclass
class Folder:
    """The entries of a folder: now, on the disk, and the changes between the two."""

    entries: dict[str, "Node"] = field(default_factory=dict)
    synced: dict[str, "Node"] = field(default_factory=dict)
    changes: list[dict[str, "Node | None"]] = field(default_factory=list)  # the new entry of a name

    def change(self, **entries: "Node | None") -> None:
        self.changes.append(entries)
        _apply(entries, self.entries)

    def sync(self) -> None:
        self.synced, self.changes = dict(self.entries), []


Node = File | Link | Folder
Tree = dict[str, "bytes | str | Tree"]  # a folder as it is found: contents of files, targets of links, folders


class Disk:
    """A disk under the strict model; `root` is all of it."""

    def __init__(self, root: Path) -> None:
        self.root = _stored_folder(root)

    def play(self, event: Event) -> None:
        """Repeat an event on this disk. An event that failed changes nothing."""
        if event.result < 0 or event.call not in _TELLING:
            return
        path, second = PurePosixPath(event.path), PurePosixPath(event.second)
        folder = self._node(path.parent)
        if not isinstance(folder, Folder):
            return  # a file without a name, because it was deleted while open
        match event.call:
            case "new":
                folder.change(**{path.name: File()})
            case "mkdir":
                folder.change(**{path.name: Folder()})
            case "symlink":
                folder.change(**{path.name: Link(event.second)})
            case "unlink" | "rmdir":
                folder.change(**{path.name: None})
            case "rename":
                moved, target = folder.entries[path.name], self._folder(second.parent)
                if target is folder:
                    folder.change(**{path.name: None, second.name: moved})
                else:
                    target.change(**{second.name: moved})
                    folder.change(**{path.name: None})
            case "link":
                self._folder(second.parent).change(**{second.name: folder.entries[path.name]})
            case "write" | "truncate" | "copy":
                self._file(path).write(event.data)
            case "fsync":
                self._file(path).sync()
            case "fsyncdir":
                self._folder(path).sync()

    def state(self, keeps: Callable[[], bool], content: Callable[[File], bytes]) -> Tree:
        """The tree that is found after a power cut. `keeps` decides on each change of a folder, `content` on a file."""
        return _found(self.root, keeps, content)

    def _folder(self, path: PurePosixPath) -> Folder:
        node = self._node(path)
        assert isinstance(node, Folder), path
        return node

    def _file(self, path: PurePosixPath) -> File:
        node = self._node(path)
        assert isinstance(node, File), path
        return node

    def _node(self, path: PurePosixPath) -> Node | None:
        node: Node | None = self.root
        for part in path.parts:
            node = node.entries.get(part) if isinstance(node, Folder) else None
        return node


@cache
def points(lab: Lab) -> list[tuple[Scenario, int, int]]:
    """Each scenario, with each number of events after which the disk or the output differs, and each kind of state."""
    found = []
    for each in SCENARIOS:
        events = lab.known(each).events
        ends = [0, *(end for end, event in enumerate(events, start=1) if event.call in _TELLING)]
        found += [(each, end, state) for end in ends for state in range(_STATES)]
    return found


def trial(lab: Lab, seed: int) -> Failure | None:
    scenario, end, state = scattered(points(lab), seed)
    known, random = lab.known(scenario), Random(seed)
    disk = Disk(known.before)
    for event in known.events[:end]:
        disk.play(event)
    if state == 0:
        tree = disk.state(lambda: False, lambda file: file.synced)
    elif state == 1:
        tree = disk.state(lambda: True, lambda file: file.content)
    else:
        share = random.random()
        tree = disk.state(lambda: random.random() < share, lambda file: random.choice(_contents(file, random)))
    promised = _promised(known, known.events[:end])
    key = f"{scenario.name} {promised} {hashlib.sha256(repr(tree).encode()).hexdigest()}"
    if key not in lab.judged:
        lab.begin(known.before)
        for path in lab.trial.iterdir():
            if path.name not in ("text.txt", "other.txt"):  # the user's own
                lab.remove(path)
        _write(tree, lab.trial)
        last = known.events[max(0, end - 1)]
        lab.story.append(f"cut after event {end}, {last.call} {last.path} {last.second}, which left {_names(tree)}")
        lab.judged[key] = lab.judge(scenario, promised, real=seed % 64 == 0)
    return lab.judged[key]


_STATES = 2 + RANDOM_STATES
_TELLING = {*CHANGING, "new"} - {"create", "chmod", "utime", "flock"}


def _promised(known: Known, events: list[Event]) -> int:
    """The last step that the run has said is saved; 0 if there is none."""
    said = b"".join(event.data for event in events if event.call == "print").decode()
    logged = [int(step) for step in _LOGGED.findall(said)]
    if logged and _SAVED.search(said):
        return logged[-1]
    saved = range(logged[0], logged[-1]) if logged else ()
    return max([known.step, *(step for step in saved if step % 2 == 0)])  # --ckpt-every 2


def _contents(file: File, random: Random) -> list[bytes]:
    """The contents that a file may have: the synced one, all, a part, or zeros in the place of unsynced bytes."""
    if file.content == file.synced:
        return [file.content]
    part = file.content[: random.randint(file.kept, len(file.content))]
    return [file.synced, file.content, part, file.content[: file.kept].ljust(len(file.content), b"\0")]


def _apply(change: dict[str, Node | None], entries: dict[str, Node]) -> None:
    for name, node in change.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


def _found(folder: Folder, keeps: Callable[[], bool], content: Callable[[File], bytes]) -> Tree:
    entries = dict(folder.synced)
    for change in folder.changes:
        if keeps():
            _apply(change, entries)
    found: Tree = {}
    for name, node in sorted(entries.items()):
        if isinstance(node, Folder):
            found[name] = _found(node, keeps, content)
        else:
            found[name] = node.target if isinstance(node, Link) else content(node)
    return found


def _stored(path: Path) -> Node:
    """A file or folder that has long been on the disk."""
    if path.is_symlink():
        return Link(str(path.readlink()))
    if path.is_file():
        data = path.read_bytes()
        return File(data, data, len(data))
    return _stored_folder(path)


def _stored_folder(path: Path) -> Folder:
    entries = {each.name: _stored(each) for each in path.iterdir()}
    return Folder(dict(entries), entries)


def _write(tree: Tree, folder: Path) -> None:
    for name, node in tree.items():
        path = folder / name
        if isinstance(node, dict):
            path.mkdir()
            _write(node, path)
        elif isinstance(node, str):
            path.symlink_to(node)
        elif not path.exists():
            path.write_bytes(node)


def _names(tree: Tree, inside: str = "") -> str:
    return " ".join(
        _names(node, f"{inside}{name}/") if isinstance(node, dict) else inside + name for name, node in tree.items()
    )
