"""A run directory, `checkpoints/RUN/`: its name, the names of its files, and its lock.

Everything that one training run owns lies in this directory. docs/formats.md describes each file.
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
from gpt.errors import UserError, cannot, naming
from gpt.system.files import finish_commit, make_directory, missing, remove, remove_empty
from gpt.system.filesystem import IS_WINDOWS
from gpt.system.lock import NAMES as LOCK_NAMES
from gpt.system.lock import Lock
from gpt.system.reading import COUNT, NUMBER, SMALL, check, optional, or_null, parse

ROOT = Path(RUNS_DIR)
NAME_LIMIT = 200  # characters: file systems allow 255 bytes a name, and the longest file of a run adds about 50
# A first "." would hide the run, a first "-" reads as an option, and Windows drops a last ".".
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_-])?")
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # Windows allows no such file name

CONFIG, OPTIMIZER, WEIGHTS = "_config.json", "_optimizer.safetensors", ".safetensors"  # ends of a checkpoint's files
_PART = re.compile(r"(.+)_step(0|[1-9][0-9]*)(_config\.json|_optimizer\.safetensors|\.safetensors)")

COPIES = "stdin-"  # beginning of the name of a copy of standard input (gpt/corpus/standard_input.py)

WAIT = 3.0  # seconds to wait for the lock

_METRICS = {"step": COUNT, "time": optional(NUMBER), "tokens": optional(COUNT)}
_METRICS |= dict.fromkeys(("loss", "val_loss", "val_fraction"), optional(or_null(NUMBER)))
_TEMPORARY = re.compile(r"\..+\.tmp|\.tmp[A-Za-z0-9]{6}")  # names that gpt.system.files gives, and safetensors gave


def default_root() -> Path:
    """The directory of runs if --runs-dir is not given: HIPGPT_RUNS_DIR, else checkpoints/."""
    return Path(os.environ.get(RUNS_DIR_VARIABLE) or ROOT).expanduser()


class Run:
    """The run `name` under `root`, and the paths of its files, whether they exist or not.

    Raises UserError for a name with other characters than letters, digits, '.', '_' and '-', so that no name leads out
    of `root`; and for a name that Windows does not allow, because runs are copied from machine to machine.
    """

    def __init__(self, name: str, root: Path = ROOT) -> None:
        if fault := _name_fault(name):
            raise UserError(f"--run-name {fault}")
        self._locate(name, Path(root) / name)

    @classmethod
    def at(cls, directory: Path) -> "Run":
        """The run in a directory that exists already. It may lie anywhere and have any name."""
        run = cls.__new__(cls)
        run._locate(directory.name, directory)
        return run

    @staticmethod
    def new_name() -> str:
        """A new run's name, from the local time and a random number: `run_20261123_114501_9f3c`."""
        return time.strftime("run_%Y%m%d_%H%M%S_") + secrets.token_hex(2)

    def _locate(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.tokenizer_path = path / "tokenizer.json"
        self.tokens_path = path / "tokens.bin"
        self.tokens_info_path = path / "tokens.json"
        self.counted_path = path / "counted.bin"
        self.metrics_path = path / "metrics.jsonl"
        self.base_path = path / "base.safetensors"  # what the adapters of --lora were trained beside
        # Links to the files of a checkpoint, or copies of them on a file system without links.
        self.latest_weights_path = path / "latest_checkpoint.safetensors"
        self.latest_config_path = path / "latest_config.json"
        self.best_weights_path = path / "best_checkpoint.safetensors"
        self.best_config_path = path / "best_config.json"
        # Tokenizer and tokens are made in `staged_path`; a learned vocabulary waits there if encoding was interrupted.
        # Renamed to `committed_path`, they replace the old ones (gpt.system.files.commit).
        self.staged_path = path / ".tokenizing"
        self.committed_path = path / ".tokenized"

    @property
    def options(self) -> str:
        """The options that name this run on the command line: "--run-name r", with --runs-dir if that is needed."""
        return f"--run-name {self.name}{self.elsewhere}"

    @property
    def elsewhere(self) -> str:
        """The option that commands need to find this run by its name: " --runs-dir DIR", or "" if they need none."""
        directory = self.path.parent
        is_usual = os.path.realpath(directory) == os.path.realpath(default_root())
        return "" if is_usual else f" --runs-dir {shlex.quote(str(directory))}"

    def trial(self, best: bool) -> str:
        """The command that tries the model, or its `best` checkpoint: a chat, if it has learned from conversations."""
        options = self.options + " --best" * best
        return f"hipgpt chat {options}" if self.counted_path.exists() else f'hipgpt generate {options} --prompt "…"'

    def weights_path(self, step: int) -> Path:
        return self.path / f"{self._stem(step)}{WEIGHTS}"

    def optimizer_path(self, step: int) -> Path:
        return self.path / f"{self._stem(step)}{OPTIMIZER}"

    def config_path(self, step: int) -> Path:
        return self.path / f"{self._stem(step)}{CONFIG}"

    def best_step_paths(self, step: int) -> tuple[Path, Path]:
        """The files of a best checkpoint made at `step`: weights and config. `best_*` are links to the latest two."""
        stem = f"{self.name}_best_step{step}"
        return self.path / f"{stem}{WEIGHTS}", self.path / f"{stem}{CONFIG}"

    def _stem(self, step: int) -> str:
        """The beginning of the names of a step's files.

        It has the run's name, unless the step was saved when the run had another name, or by the run this is a copy of.
        """
        own = f"{self.name}_step{step}"
        if (self.path / f"{own}{CONFIG}").exists():
            return own
        prefixes = [prefix for (prefix, found), parts in self.parts().items() if found == step and CONFIG in parts]
        return f"{min(prefixes)}_step{step}" if prefixes else own

    def parts(self, best: bool = False) -> dict[tuple[str, int], set[str]]:
        """The files of each checkpoint, or with `best` of each best checkpoint.

        The keys are (prefix, step), the values sets of CONFIG, OPTIMIZER and WEIGHTS. The prefix is the name that the
        run had when the step was saved; for a best checkpoint it ends in `_best`. A run may itself be called `x_best`,
        but its checkpoints have an optimizer's file, and the best ones of a run `x` have none.

        Example:
            r_step8.safetensors, r_step8_config.json and r_best_step4.safetensors give {("r", 8): {WEIGHTS, CONFIG}},
            and with `best` {("r_best", 4): {WEIGHTS}}.
        """
        found: dict[tuple[str, int], set[str]] = {}
        with suppress(FileNotFoundError, NotADirectoryError):
            for match in filter(None, map(_PART.fullmatch, os.listdir(self.path))):
                found.setdefault((match[1], int(match[2])), set()).add(match[3])

        def is_best(prefix: str, parts: set[str]) -> bool:
            return prefix != self.name and prefix.endswith("_best") and OPTIMIZER not in parts

        return {stem: parts for stem, parts in found.items() if is_best(stem[0], parts) == best}

    def steps(self) -> list[int]:
        """The steps that have a whole checkpoint, ascending: those with a config, which is written last."""
        return sorted({step for (_, step), parts in self.parts().items() if CONFIG in parts})

    @property
    def has_checkpoints(self) -> bool:
        """Whether training can go on here."""
        return bool(self.steps()) or os.path.lexists(self.latest_config_path)

    @property
    def has_weights(self) -> bool:
        """Whether a model has been trained here. A run that was killed early may have only a best checkpoint."""
        return self.has_checkpoints or os.path.lexists(self.best_config_path)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, as {"step": …, …}. Leaves out lines that are damaged, or cut short by a kill."""
        entries = []
        if self.metrics_path.is_file():
            with naming(self.metrics_path), open(self.metrics_path, "rb") as file:
                while line := file.readline(SMALL):
                    if (entry := log_line(line)) is not None:
                        entries.append(entry)
        return entries

    def input_copies(self) -> list[Path]:
        """The copies of standard input that are here."""
        return sorted(self.path.glob(f"{COPIES}*"))

    def discard_tokens(self) -> None:
        """Remove the tokenizer, the tokens and the copies of standard input, if there are any."""
        remove(self.staged_path)
        for path in (
            self.tokens_info_path,
            self.tokens_path,
            self.counted_path,
            self.tokenizer_path,
            *self.input_copies(),
        ):
            path.unlink(missing_ok=True)

    def disk_bytes(self) -> int:
        """The bytes that the run's files take on disk. A link counts as a link."""
        total = 0
        for directory, _, names in os.walk(self.path):
            for name in names:
                with suppress(FileNotFoundError):  # a trainer may prune meanwhile
                    total += os.lstat(os.path.join(directory, name)).st_size
        return total

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Inside the `with`, this is the only process that writes to the run.

        Creates the directory and those above it, and removes at the end those that are new and hold nothing. First
        removes or finishes the half-done work of a process that was killed. Waits a few seconds for another process
        that holds the lock, because that may be a command that is about to be refused.

        Raises UserError if another process still holds the lock, or if the directory cannot be written to.
        """
        new = missing(self.path.parent)
        lock = self._acquired()
        try:
            with cannot(f"write to {self.path}", even_if_missing=True):
                for name in filter(_TEMPORARY.fullmatch, os.listdir(self.path)):
                    remove(self.path / name)
                finish_commit(self.committed_path)
            yield
        finally:
            with suppress(OSError):
                if set(os.listdir(self.path)) <= LOCK_NAMES:
                    if IS_WINDOWS:  # an open file cannot be removed there
                        lock.release()
                    for name in os.listdir(self.path):
                        (self.path / name).unlink()
                    self.path.rmdir()
            lock.release()
            remove_empty(new)

    def _acquired(self) -> Lock:
        """The run's lock, once this process holds it. Raises UserError as `lock` does."""
        lock, deadline = Lock(self.path), time.monotonic() + WAIT
        while True:
            try:
                make_directory(self.path)
                if lock.acquire():
                    return lock
            except FileNotFoundError:  # another process has just removed the directory, because it held nothing
                pass
            except FileExistsError:
                fault = "is a broken link" if self.path.is_symlink() else "is not a directory"
                raise UserError(f"{self.path} {fault}: remove it, or take another --run-name") from None
            except OSError as error:
                raise UserError(f"cannot write to {self.path}: {error.strerror}") from error
            if time.monotonic() > deadline:
                raise UserError(
                    f"run {self.name} is being written to by another process{lock.holder()}: wait for it, or take "
                    "another --run-name"
                )
            time.sleep(0.05)


def log_line(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl, as `Run.metrics` has it; None if it is damaged, or cut short by a kill."""
    with suppress(ValueError):
        return check(parse(line), _METRICS)
    return None


def is_run(directory: str) -> bool:
    """Whether a directory holds a run: tokens, or the tokenizer of ready-made ones, or a checkpoint."""
    own = Run.at(Path(directory))
    has_tokens = own.tokens_info_path.exists() and (own.tokens_path.exists() or own.tokenizer_path.exists())
    return has_tokens or os.path.lexists(own.latest_config_path)


def _name_fault(name: str) -> str | None:
    """The fault of a run's name, in words that follow the option's name; None if it has none."""
    if len(name) > NAME_LIMIT:
        return f"has {len(name)} characters, but must have at most {NAME_LIMIT}"
    if not _NAME.fullmatch(name):
        wanted = "letters, digits, '.', '_' and '-', and not start with '.' or '-' or end with '.'"
        directory, _, last = name.rstrip("/").rpartition("/")
        advice = ""
        if _NAME.fullmatch(last) and not name.startswith("/" + last):
            advice = f": give {last}" + (f" with --runs-dir {shlex.quote(directory)}" if directory else "")
        return f"is {name!r}, but must consist of {wanted}{advice}"
    if _DEVICE.fullmatch(name):
        return f"is {name!r}, but must not be the name of a device on Windows: take {name}_run, say"
    return None


def list_runs(root: Path) -> list[Run]:
    """The runs under `root` by name: directories that hold a tokenizer, tokens or a checkpoint."""
    if not root.is_dir():
        return []
    runs = [Run(path.name, root) for path in sorted(root.iterdir()) if not _name_fault(path.name) and path.is_dir()]
    readable = [run for run in runs if os.access(run.path, os.R_OK | os.X_OK)]
    return [run for run in readable if run.tokenizer_path.exists() or run.tokens_path.exists() or run.has_checkpoints]
