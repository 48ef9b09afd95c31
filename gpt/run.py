"""A run directory: its name, its files, its lock.

Everything one training run owns lies in `checkpoints/RUN/`, and this file is where each of its files gets its name.
"""

import os
import re
import secrets
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gpt.config import RUNS_DIR, RUNS_DIR_VARIABLE
from gpt.errors import UserError
from gpt.system.files import finish_commit, make_directory, remove
from gpt.system.lock import NAMES as LOCK_NAMES
from gpt.system.lock import Lock
from gpt.system.reading import COUNT, NUMBER, SMALL, check, optional, or_null, parse

ROOT = Path(RUNS_DIR)
NAME_LIMIT = 200  # file systems allow 255 bytes a name; the longest file of a run adds 50 or so to the run's name
# A first "." would hide the run, a first "-" reads as an option, and Windows drops a last ".".
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_-])?")
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # no file of Windows has such a name

CONFIG, OPTIMIZER, WEIGHTS = "_config.json", "_optimizer.safetensors", ".safetensors"
_PART = re.compile(r"(.+)_step(0|[1-9][0-9]*)(_config\.json|_optimizer\.safetensors|\.safetensors)")

WAIT = 3.0  # seconds for the lock

_METRICS = {"step": COUNT, "time": optional(NUMBER), "tokens": optional(COUNT)}
_METRICS |= dict.fromkeys(("loss", "val_loss"), optional(or_null(NUMBER)))
_TEMPORARY = re.compile(r"\..+\.tmp|\.tmp[A-Za-z0-9]{6}")  # as gpt.system.files names them, and as safetensors did


def default_root() -> Path:
    """The directory of runs if --runs-dir is not given: HIPGPT_RUNS_DIR, else checkpoints/."""
    return Path(os.environ.get(RUNS_DIR_VARIABLE) or ROOT)


class Run:
    """The run `name` under `root`: where its files are, whether they exist or not.

    Raises UserError for a name that is not plain letters, digits, '.', '_' and '-', so that none can leave `root`, and
    for one that no directory of Windows can have, as runs are copied from machine to machine.
    """

    name: str
    path: Path

    def __init__(self, name: str, root: Path = ROOT) -> None:
        if len(name) > NAME_LIMIT:
            raise UserError(f"--run-name has {len(name)} characters, but must have at most {NAME_LIMIT}")
        if not _NAME.fullmatch(name):
            wanted = "letters, digits, '.', '_' and '-', and not start with '.' or '-' or end with '.'"
            raise UserError(f"--run-name is {name!r}, but must consist of {wanted}")
        if _DEVICE.fullmatch(name):
            raise UserError(f"--run-name is {name!r}, but must be none of Windows' devices: take {name}_run, say")
        self.name, self.path = name, Path(root) / name

    @classmethod
    def at(cls, directory: Path) -> "Run":
        """The run in a directory that exists already, wherever it lies and whatever it is called."""
        run = cls.__new__(cls)
        run.name, run.path = directory.name, directory
        return run

    @staticmethod
    def new_name() -> str:
        """A name from the local time, and a random end that tells runs apart which start together:
        `run_20261123_114501_9f3c`.
        """
        return time.strftime("run_%Y%m%d_%H%M%S_") + secrets.token_hex(2)

    @property
    def options(self) -> str:
        """The options that name this run on the command line: "--run-name r", with --runs-dir where that is needed."""
        elsewhere = "" if self.path.parent == default_root() else f" --runs-dir {shlex.quote(str(self.path.parent))}"
        return f"--run-name {self.name}{elsewhere}"

    @property
    def tokenizer_path(self) -> Path:
        return self.path / "tokenizer.json"

    @property
    def tokens_path(self) -> Path:
        return self.path / "tokens.bin"

    @property
    def tokens_info_path(self) -> Path:
        return self.path / "tokens.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def latest_weights_path(self) -> Path:
        return self.path / "latest_checkpoint.safetensors"

    @property
    def latest_config_path(self) -> Path:
        return self.path / "latest_config.json"

    @property
    def best_weights_path(self) -> Path:
        return self.path / "best_checkpoint.safetensors"

    @property
    def best_config_path(self) -> Path:
        return self.path / "best_config.json"

    def best_step_paths(self, step: int) -> tuple[Path, Path]:
        """Weights and config of `step`, of which `best_*` are links to the best one's."""
        stem = f"{self.name}_best_step{step}"
        return self.path / f"{stem}.safetensors", self.path / f"{stem}_config.json"

    def weights_path(self, step: int) -> Path:
        return self.path / f"{self._stem(step)}.safetensors"

    def optimizer_path(self, step: int) -> Path:
        return self.path / f"{self._stem(step)}_optimizer.safetensors"

    def config_path(self, step: int) -> Path:
        return self.path / f"{self._stem(step)}_config.json"

    def _stem(self, step: int) -> str:
        """The beginning of the names of a step's files: the run's name, or another that it once had (or a copy has)."""
        own = f"{self.name}_step{step}"
        if (self.path / f"{own}_config.json").exists():
            return own
        stems = [stem for stem, parts in self.parts().items() if stem[1] == step and CONFIG in parts]
        return next((f"{prefix}_step{step}" for prefix, _ in sorted(stems)), own)

    def parts(self, best: bool = False) -> dict[tuple[str, int], set[str]]:
        """The files of each checkpoint: (prefix, step) → which of CONFIG, OPTIMIZER and WEIGHTS there are.

        The prefix is the run's name, or the one that it had when the step was saved. With `best`, those of the best
        checkpoints, whose names continue with `_best`. A run may itself be called `x_best`. Its steps have
        an optimizer's file, and the best ones of a run `x` have not.
        """
        found: dict[tuple[str, int], set[str]] = {}
        with suppress(FileNotFoundError, NotADirectoryError):
            for match in filter(None, map(_PART.fullmatch, os.listdir(self.path))):
                found.setdefault((match[1], int(match[2])), set()).add(match[3])

        def is_best(prefix: str, parts: set[str]) -> bool:
            return prefix != self.name and prefix.endswith("_best") and OPTIMIZER not in parts

        return {stem: parts for stem, parts in found.items() if is_best(stem[0], parts) == best}

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending: those whose config file, written last, exists."""
        return sorted({step for (_, step), parts in self.parts().items() if CONFIG in parts})

    @property
    def has_checkpoints(self) -> bool:
        """Whether training can go on here."""
        return bool(self.steps()) or os.path.lexists(self.latest_config_path)

    @property
    def has_weights(self) -> bool:
        """Whether a model has been trained here, be it only the best one of a run that was killed early."""
        return self.has_checkpoints or os.path.lexists(self.best_config_path)

    def metrics(self) -> list[dict[str, Any]]:
        """What was logged: {"step": …, …} for each line of metrics.jsonl, but for one that a kill cut short."""
        entries = []
        if self.metrics_path.is_file():
            with open(self.metrics_path, "rb") as file:
                while line := file.readline(SMALL):
                    with suppress(ValueError):
                        entry = parse(line)
                        check(entry, _METRICS)
                        entries.append(entry)
        return entries

    @property
    def staged_path(self) -> Path:
        """Where tokenizer and tokens are made. A learned vocabulary waits here if encoding was interrupted."""
        return self.path / ".tokenizing"

    @property
    def committed_path(self) -> Path:
        """Name of the directory above, from the rename that counts until its files have taken their places."""
        return self.path / ".tokenized"

    def discard_tokens(self) -> None:
        """Remove the tokenizer and the tokens, where there are any."""
        remove(self.staged_path)
        for path in (self.tokens_info_path, self.tokens_path, self.tokenizer_path):
            path.unlink(missing_ok=True)

    def disk_bytes(self) -> int:
        """What the run's files take on disk, in bytes. Links count as links."""
        total = 0
        for directory, _, names in os.walk(self.path):
            for name in names:
                with suppress(FileNotFoundError):  # a trainer may be pruning meanwhile
                    total += os.lstat(os.path.join(directory, name)).st_size
        return total

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only process that writes to this run, inside the `with`.

        Creates the directory, and removes it again if nothing has come to be in it. First removes or finishes
        the half-done work of a process that was killed. Waits a few seconds for another process, which may be a command
        that is about to be refused.
        Raises UserError if another process still holds the lock, or if the directory cannot be written to.
        """
        lock, deadline = Lock(self.path), time.monotonic() + WAIT
        while True:
            try:
                make_directory(self.path)
                if lock.acquire():
                    break
            except FileNotFoundError:  # the other process has just removed the directory, with nothing in it
                pass
            except OSError as error:
                raise UserError(f"cannot write to {self.path}: {error.strerror}") from error
            if time.monotonic() > deadline:
                raise UserError(
                    f"run {self.name} is being written to by another process{lock.holder()}: wait for it, or take "
                    "another --run-name"
                )
            time.sleep(0.05)
        try:
            try:
                for name in filter(_TEMPORARY.fullmatch, os.listdir(self.path)):
                    remove(self.path / name)
                finish_commit(self.committed_path)
            except OSError as error:
                raise UserError(f"cannot write to {self.path}: {error.strerror}") from error
            yield
        finally:
            with suppress(OSError):
                if set(os.listdir(self.path)) <= LOCK_NAMES:
                    if os.name == "nt":  # where an open file cannot be removed
                        lock.release()
                    for name in os.listdir(self.path):
                        (self.path / name).unlink()
                    self.path.rmdir()
            lock.release()


def _is_run_name(name: str) -> bool:
    return len(name) <= NAME_LIMIT and _NAME.fullmatch(name) is not None and not _DEVICE.fullmatch(name)


def list_runs(root: Path = ROOT) -> list[Run]:
    """The runs under `root` by name: directories that hold a tokenizer, tokens or a checkpoint."""
    if not root.is_dir():
        return []
    runs = [Run(path.name, root) for path in sorted(root.iterdir()) if _is_run_name(path.name) and path.is_dir()]
    readable = [run for run in runs if os.access(run.path, os.R_OK | os.X_OK)]
    return [run for run in readable if run.tokenizer_path.exists() or run.tokens_path.exists() or run.has_checkpoints]
