"""The commands that the campaign troubles, how a user goes on afterwards, and the files that must then be there.

A scenario is a command that gets into trouble. `Lab.judge` goes on as a user would: with `--resume` and, if that is
refused or does not reach the end, with the command itself. The folder must then be as the command leaves it without
trouble: the same weights bit for bit, the same lines of metrics.jsonl but for times, and no other file. One thing is
excused: checkpoints and best weights of earlier steps, which pruning was about to remove, may stay until hipgpt prunes
again.
"""

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.campaign import process
from tests.campaign.journal import Event, read
from tests.campaign.process import Order, Outcome

Content = dict[str, Any]  # a folder's files by name: bytes, or parsed JSON without times

SENTENCES = "the cat sat on a mat . a dog ran to the old naïve fox ! where is the red house ? it is far away . "
TEXT = "".join(SENTENCES[i % 40 :].strip() + "\n" * (1 + i % 3) for i in range(24))
OTHER_TEXT = TEXT.replace("cat", "bird").replace("red", "green")

SIZES = "--seq 8 --dim 8 --heads 2 --ff 16 --layers 1 --batch 2 --device cpu --val-fraction 0.1 --log-every 1"
LEARN = "--data-path text.txt --vocab-size 60"
SAVES = "--ckpt-every 2 --keep-last 2 --eval-every 2"
TRAIN = f"train --run-name r --steps 6 {LEARN} {SIZES} {SAVES}"
RESUME = "train --run-name r --resume"
LATEST = "checkpoints/r/latest_checkpoint.safetensors"
_TIMES = ("time", "ms", "tokens_per_second", "mtime_ns")
EARLIER = re.compile(
    r"checkpoints/(\w+)/\1_(best_)?step[0-9]+(_optimizer\.safetensors|_config\.json|\.safetensors) is left over"
)
_PRUNED = re.compile(r"checkpoints/(\w+)/\1_step[0-9]+(_optimizer\.safetensors|_config\.json|\.safetensors) is missing")
_VARYING = (
    (re.compile(r"\.\S*\.tmp|\.tmp\w{6}"), "(temporary file)"),
    (re.compile(r"/\S*/trial/"), ""),
    (re.compile(r"[0-9]+"), "N"),
)


@dataclass(frozen=True)
class Scenario:
    """The trouble happens to `command`, after the commands in `before`.

    `resume`, the command itself, and `otherwise` are tried in this order to go on, until one succeeds. `stop_at` is the
    beginning of a line: the last command of `before` is killed when it is about to print that line. `probe` is a
    command that must be accepted in any state that `command` leaves.
    """

    name: str
    command: str
    before: tuple[str, ...] = ()
    stop_at: str = ""
    resume: str = ""
    otherwise: str = ""
    probe: str = ""
    may_refuse_when_done: bool = False  # because `--out` exists then

    @property
    def run(self) -> str:
        return "b" if " --run-name b" in self.command else "r"


_PROBE = f"train --run-name r --steps 1 {SIZES}"
SCENARIOS = (
    Scenario("train", TRAIN, resume=RESUME),
    Scenario("train, tokenized", f"{TRAIN} --sample-every 3", (f"tokenize --run-name r {LEARN}",), resume=RESUME),
    Scenario("train --reset", f"{TRAIN} --reset",
             ("tokenize --run-name r --data-path other.txt --vocab-size 50",), resume=RESUME, otherwise=TRAIN),
    Scenario("train --resume", RESUME, (TRAIN,), stop_at="[Step 4]"),
    Scenario("train --ckpt, a branch", f"train --ckpt {LATEST} --run-name b --steps 4", (TRAIN,),
             resume="train --run-name b --resume"),
    Scenario("train --ckpt, another text", f"train --ckpt {LATEST} --run-name b --steps 4 --data-path other.txt",
             (TRAIN,), resume="train --run-name b --resume"),
    Scenario("train --ckpt", f"train --ckpt {LATEST} --steps 4", (TRAIN,), resume=RESUME),
    Scenario("tokenize", f"tokenize --run-name r {LEARN}", probe=f"{_PROBE} --data-path text.txt"),
    Scenario("tokenize, bytes", "tokenize --run-name r --data-path text.txt --vocab-size 280 --tokenizer byte",
             probe=f"{_PROBE} --data-path text.txt"),
    Scenario("tokenize --reset", f"tokenize --run-name r {LEARN} --reset",
             ("tokenize --run-name r --data-path other.txt --vocab-size 50",), probe=_PROBE),
    Scenario("export", "export --run-name r --out hf", (TRAIN,), may_refuse_when_done=True),
    Scenario("export --best", "export --run-name r --out deep/hf --best", (TRAIN,), may_refuse_when_done=True),
)  # fmt: skip


@dataclass
class Failure:
    """A trial that did not end as it must: its kind in a few words, for the table, and the story of its commands."""

    kind: str
    story: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Known:
    """A scenario without any trouble.

    It is the folder before, the last step that is saved in it, the events of the command, and the content in the end.
    """

    before: Path
    step: int
    events: list[Event]
    content: Content


class Lab:
    """A place for trials: a folder in memory if possible, because an fsync costs nothing there.

    It is removed at the end of a `with`. It starts with the scenarios that an `other` lab has already run.
    """

    def __init__(self, other: "Lab | None" = None) -> None:
        shared = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(prefix="hipgpt-", dir=shared if os.access(shared, os.W_OK) else None))
        self._known: dict[str, Known] = dict(other._known) if other else {}
        self.trial = self.folder / "trial"
        self.story: list[str] = []
        self.judged: dict[str, Failure | None] = {}  # verdicts on states, by their digests

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def begin(self, source: Path | None = None) -> Path:
        """The trial's folder, empty or a copy of `source`."""
        self.story = []
        shutil.rmtree(self.trial, ignore_errors=True)
        if source is None:
            self.trial.mkdir()
            (self.trial / "text.txt").write_text(TEXT, encoding="utf-8")
            (self.trial / "other.txt").write_text(OTHER_TEXT, encoding="utf-8")
        else:
            shutil.copytree(source, self.trial, symlinks=True)
        return self.trial

    @staticmethod
    def remove(path: Path) -> None:
        """Remove a file, a link or a folder."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()

    def run(self, command: str | Sequence[str], order: Order | None = None, real: bool = False) -> Outcome:
        command = command.split() if isinstance(command, str) else command
        outcome = process.run(command, self.trial, order, real)
        self.story.append((f"({order.do} at {' '.join(order.calls)} {order.at}) " if order else "") + str(outcome))
        return outcome

    def known(self, scenario: Scenario) -> Known:
        """The scenario without any trouble; AssertionError if even that does not end well."""
        if scenario.name not in self._known:
            trial = self.begin()
            journal = self.folder / "journal"
            for number, command in enumerate(scenario.before, start=1):
                if number == len(scenario.before) and scenario.stop_at:
                    self.run(command, Order(journal=journal))
                    prints = [event.data for event in read(journal, trial) if event.call == "print"]
                    at = 1 + next(i for i, text in enumerate(prints) if text.startswith(scenario.stop_at.encode()))
                    journal.unlink()
                    self.begin()
                    assert self.run(command, Order(("print",), at, "kill")).status == -9, self.story[-1]
                else:
                    assert self.run(command).status == 0, self.story[-1]
            before = self.folder / f"before {len(self._known)}"
            shutil.copytree(trial, before, symlinks=True)
            assert self.run(scenario.command, Order(journal=journal)).status == 0, self.story[-1]
            step = last_step(content(before), scenario.run)
            self._known[scenario.name] = Known(before, step, read(journal, trial), content(trial))
            journal.unlink()
        return self._known[scenario.name]

    def judge(self, scenario: Scenario, promised: int = 0, real: bool = False) -> Failure | None:
        """Go on in the trial's folder. Returns the failure, if any. `promised` is a step that was reported saved."""
        if last_step(content(self.trial), scenario.run) < promised:
            return Failure("a step that was reported saved is gone", [*self.story, f"step {promised} is gone"])
        if scenario.probe and (failure := self._probe(scenario.probe)):
            return failure
        expected = self.known(scenario).content
        for command in filter(None, (scenario.resume, scenario.command, scenario.otherwise)):
            last = self.run(command, real=real)
            if last.fault:
                return Failure(f"going on: {last.fault}", self.story)
            found = content(self.trial)
            is_done = last_step(found, scenario.run) == last_step(expected, scenario.run)
            wrong = _unexpected(differences(expected, found), last_step(expected, scenario.run))
            if not wrong or (is_done and not last.status):
                break
        if wrong:
            self.story += wrong
            if last.status:
                return Failure(f"going on is refused: {generic(last.errors)}", self.story)
            return Failure(f"after going on: {generic(wrong[0].partition(':')[0])}", self.story)
        if last.status and not scenario.may_refuse_when_done:
            return Failure(f"done, but refused: {generic(last.errors)}", self.story)
        return None

    def _probe(self, command: str) -> Failure | None:
        aside = self.folder / "aside"
        shutil.copytree(self.trial, aside, symlinks=True)
        outcome = self.run(command)
        shutil.rmtree(self.trial)
        aside.rename(self.trial)
        if outcome.fault or outcome.status:
            return Failure(f"training is refused: {outcome.fault or generic(outcome.errors)}", self.story)
        return None


def _unexpected(lines: list[str], last: int) -> list[str]:
    """The differences from an uninterrupted run that nothing explains.

    A stop between two checkpoints saves a step of its own. It may be left over, and --keep-last may have removed one
    earlier step for each of those, though never the last step.
    """
    left_over = {_step(line) for line in lines if EARLIER.fullmatch(line) and "_best_" not in line}
    wrong = [line for line in lines if not EARLIER.fullmatch(line)]
    pruned = {_step(line) for line in wrong if _PRUNED.fullmatch(line)}
    if last in pruned or len(pruned) > len(left_over):
        return wrong
    return [line for line in wrong if not _PRUNED.fullmatch(line)]


def _step(line: str) -> int:
    """The step in a line such as "checkpoints/r/r_step4_config.json is missing"."""
    return int(line.rpartition("step")[2].partition("_")[0].partition(".")[0])


def last_step(found: Content, run: str) -> int:
    """The last step that has the three files of a checkpoint, even if damaged; 0 if there is none."""
    stem = re.compile(rf"(checkpoints/{run}/{run}_step([0-9]+))_config\.json")
    matches = filter(None, map(stem.fullmatch, found))
    whole = [each for each in matches if {f"{each[1]}.safetensors", f"{each[1]}_optimizer.safetensors"} <= found.keys()]
    return max((int(each[2]) for each in whole), default=0)


def content(folder: Path) -> Content:
    """A folder's files without times: {"checkpoints/r/metrics.jsonl": [{"step": 1, …}, …], …}."""
    found: Content = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file() and not path.name.endswith(".lock"):
            data: Any = path.read_bytes()
            try:
                if path.suffix == ".jsonl":
                    data = [json.loads(line, object_hook=_without_times) for line in data.splitlines()]
                elif path.suffix == ".json":
                    data = json.loads(data, object_hook=_without_times)
            except ValueError:
                data = b"damaged"
            found[name] = data
    return found


def differences(expected: Content, found: Content) -> list[str]:
    """A line for each file that is missing, left over, or has another content."""
    lines = [f"{name} is missing" for name in expected.keys() - found.keys()]
    lines += [f"{name} is left over" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        if expected[name] != found[name]:
            lines.append(f"{name} differs")
            if name.endswith(".jsonl"):
                lines[-1] += f": {_places(found[name])} in place of {_places(expected[name])}"
    return sorted(lines)


def generic(text: str) -> str:
    """A message without the names and numbers that differ from trial to trial, so that equal failures count as one."""
    text = " ".join(text.split())
    for pattern, word in _VARYING:
        text = pattern.sub(word, text)
    return text[:110]


def _places(lines: object) -> object:
    """The step and the first value of each line of metrics.jsonl: "4 loss", "4 val_loss", …"""
    if not isinstance(lines, list):
        return lines
    return ", ".join(f"{line.get('step')} {[*line, '', '', '', ''][3]}" for line in lines)


def _without_times(value: dict[str, Any]) -> dict[str, Any]:
    return {key: each for key, each in value.items() if key not in _TIMES}


def scattered(points: Sequence[Any], seed: int) -> Any:
    """One of the points. As many successive seeds as there are points give each of them once.

    For example of 10 points, seeds 0 to 9 give numbers 0, 7, 4, 1, 8, 5, 2, 9, 6 and 3.
    """
    stride = max(1, round(len(points) * 0.618))  # the golden ratio: neighbors in time are far apart
    while math.gcd(stride, len(points)) > 1:
        stride += 1
    return points[seed * stride % len(points)]
