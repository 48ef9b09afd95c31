"""Weights & Biases (extra `wandb`). Without a key it works offline: `wandb sync` uploads the files later.

What wandb has taken cannot be taken back. So wandb.json in the run's directory remembers wandb's id of the run and the
number of lines of the log that it has. A resumed run logs the lines after its checkpoint again, the same ones as
before, so as many are passed over. If other settings now make other lines, the run gets a new id, and with it all
lines. Each line is a row of wandb's, and `step` is the horizontal axis.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from html import escape
from typing import Any

import wandb

from gpt.errors import UserError
from gpt.metrics.trackers.interface import PROJECT, Line, Opening
from gpt.metrics.trackers.log import values
from gpt.system.files import write_atomically
from gpt.system.reading import COUNT, TEXT, read_json

_RECORD = {"id": TEXT, "lines": COUNT, "settings": TEXT}


class Wandb:
    """See `Tracker`."""

    def __init__(self, opening: Opening) -> None:
        self._record_path, self._digest = opening.directory / "wandb.json", _digest(opening.settings)
        self._id, self._taken = self._record(opening.kept)
        self._passed = 0  # lines of the log so far
        is_online = "WANDB_MODE" in os.environ or wandb.login(prompt=False, verify=False)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=opening.name, id=self._id, resume="allow",
            config=opening.settings, allow_val_change=True, dir=opening.directory,
            mode=None if is_online else "offline", settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip
        self._run.define_metric("*", step_metric="step")
        offline = f"wandb sync {opening.directory / 'wandb'}/*-{self._id}"
        self.place = offline if self._run.offline else self._run.url

    def write(self, lines: Sequence[Line]) -> None:
        for number, line in enumerate(lines, start=self._passed):
            if number >= self._taken:
                row: dict[str, Any] = {"step": line["step"], **values(line)}
                if "sample" in line:
                    row["sample"] = wandb.Html(f"<pre>{escape(line['sample'])}</pre>", inject=False)
                self._run.log(row, step=number)
        self._passed += len(lines)
        if self._passed > self._taken:
            self._taken = self._passed
            record = {"id": self._id, "lines": self._taken, "settings": self._digest}
            write_atomically(self._record_path, json.dumps(record) + "\n")

    def close(self, is_done: bool) -> None:
        self._run.finish(exit_code=0 if is_done else 1)

    def _record(self, kept: int) -> tuple[str, int]:
        """wandb's id of the run, and the number of lines that it has under this id."""
        with suppress(UserError, FileNotFoundError):
            found = read_json(self._record_path, _RECORD, "a record of what wandb has", "remove it")
            if found["lines"] <= kept or found["settings"] == self._digest:
                return found["id"], found["lines"]
        return secrets.token_hex(4), 0


def _digest(settings: dict[str, Any]) -> str:
    """Equal for settings that make the same lines: the device is left out."""
    told = {key: value for key, value in settings.items() if key != "device"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


opened = Wandb
