"""The runs, as clients may see them: which have a model, how far each is, and its log as it grows."""

import math
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpt.errors import UserError, cannot, shown
from gpt.metrics.summary import summary
from gpt.run import Run, list_runs, log_line
from gpt.serve.errors import RequestError
from gpt.system.reading import SMALL
from gpt.tokenizer import Tokenizer

REST = 20  # times as long as a look at all runs takes, until the next one
MOST_SPLIT = 20_000  # characters whose pieces the page may ask for
_SHOWN = (
    "name", "state", "step", "steps", "loss", "best_val_loss", "best_step", "last_val_loss", "tokens", "seconds",
    "device", "parameters", "disk_bytes", "model",
)  # fmt: skip


class Runs:
    """The runs in the directory `root`. Only the models of those in `served` may be asked for; of all, if it is empty.

    Methods raise RequestError with status 404 if there is no such run. They read files, so they take a while.
    """

    def __init__(self, root: Path, served: Sequence[str] = ()) -> None:
        self.root, self._served = root, served
        self._lock = threading.Lock()
        self._summaries: list[dict[str, Any]] = []
        self._stale_at = 0.0

    def find(self, name: str) -> Run:
        """The run whose model goes by this name."""
        run = self._named(name)
        if run is None or not self._is_served(run):
            message = f"there is no model {shown(name)}: GET /v1/models lists them"
            raise RequestError(404, message, "model_not_found", "model")
        return run

    def models(self) -> list[dict[str, Any]]:
        """All models, as OpenAI lists its own."""
        return [_model(run) for run in list_runs(self.root) if self._is_served(run)]

    def model(self, name: str) -> dict[str, Any]:
        """One of `models`."""
        return _model(self.find(name))

    def summaries(self) -> list[dict[str, Any]]:
        """The state of each run, without paths and settings. `is_served` says whether its model may be asked for.

        That takes a while if there are many runs or long logs. So an answer holds for REST times as long as it took.
        """
        with self._lock:
            began = time.monotonic()
            if began >= self._stale_at:
                self._summaries = self._summarized()
                now = time.monotonic()
                self._stale_at = now + REST * (now - began)
            return self._summaries

    def _summarized(self) -> list[dict[str, Any]]:
        told = []
        for run in list_runs(self.root):
            with suppress(OSError):  # it is being removed
                values = summary(run).to_json()
                told.append({key: _finite(values[key]) for key in _SHOWN} | {"is_served": self._is_served(run)})
        return told

    def log(self, name: str, place: str) -> dict[str, Any]:
        """The lines of a run's log behind a place, which is "" for the beginning or comes from the last answer.

        `lines` are those of metrics.jsonl. `next` is the place behind them. `is_new` is true if they begin anew, as the
        run has been resumed or replaced: lines before the place may not hold any more. At most a megabyte is read,
        and `has_more` says whether there is more by now.
        """
        path = self._existing(name).metrics_path
        try:
            with cannot(f"read {path}"), open(path, "rb") as file:
                status = os.fstat(file.fileno())
                inode, _, position = place.partition("-")
                is_new = inode != str(status.st_ino) or not position.isdecimal() or int(position) > status.st_size
                start = 0 if is_new else int(position)
                file.seek(start)
                block = file.read(SMALL)
        except FileNotFoundError:
            return {"lines": [], "next": "", "is_new": True, "has_more": False}
        is_full = len(block) == SMALL
        end = block.rfind(b"\n") + 1  # the line behind is still being written
        if is_full and not end:  # no line is so long
            end = SMALL
        lines = [log_line(line) for line in block[:end].split(b"\n")]
        return {
            "lines": [line for line in lines if line is not None],
            "next": f"{status.st_ino}-{start + end}",
            "is_new": is_new,
            "has_more": is_full,
        }

    def pieces(self, name: str, text: str) -> dict[str, Any]:
        """The tokens of a text: `ids`, and the `pieces` of the vocabulary that they stand for."""
        if len(text) > MOST_SPLIT:
            raise RequestError(400, f"text has {len(text)} characters, but may have {MOST_SPLIT}", param="text")
        tokenizer = Tokenizer.load(self._existing(name).tokenizer_path)
        ids = tokenizer.encode(text)
        return {"ids": ids, "pieces": list(map(tokenizer.piece, ids))}

    def _is_served(self, run: Run) -> bool:
        return run.has_weights and (not self._served or run.name in self._served)

    def _existing(self, name: str) -> Run:
        run = self._named(name)
        if run is None:
            raise RequestError(404, f"there is no run {shown(name)}", "run_not_found")
        return run

    def _named(self, name: str) -> Run | None:
        with suppress(UserError):  # it is no run's name
            run = Run(name, self.root)
            return run if run.path.is_dir() else None
        return None


def _model(run: Run) -> dict[str, Any]:
    created = 0
    for path in (run.latest_config_path, run.best_config_path):
        with suppress(OSError):
            created = max(created, int(path.stat().st_mtime))
    return {"id": run.name, "object": "model", "created": created, "owned_by": "hipgpt"}


def _finite(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
