"""trackio: a database on this machine (extra `trackio`).

The run is made anew from the log each time that it starts, and the one before is deleted. So no step is there twice,
whatever was logged after the checkpoint from which a run is resumed. trackio.json in the run's directory remembers
which run of trackio's that is: runs of other directories may have the same name.
"""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import trackio

from gpt.errors import UserError
from gpt.metrics.trackers.interface import PROJECT, Line, Opening
from gpt.metrics.trackers.log import values
from gpt.system.files import write_atomically
from gpt.system.reading import TEXT, read_json

ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")  # variables that would send a run to another machine


class Trackio:
    """See `Tracker`. Raises UserError if the environment names another machine, where no run can be deleted."""

    def __init__(self, opening: Opening) -> None:
        for name in filter(os.environ.get, ELSEWHERE):
            raise UserError(f"it writes to this machine alone: unset {name}, and upload with `trackio sync`")
        self.place = f"trackio show --project {PROJECT}"
        record_path = opening.directory / "trackio.json"
        with suppress(UserError, FileNotFoundError):
            before = read_json(record_path, {"id": TEXT}, "a record of trackio's run", "remove it")["id"]
            with suppress(ValueError):  # there is no such project
                for run in trackio.Api().runs(PROJECT):
                    if run.id == before:
                        run.delete()
        self._run = trackio.init(PROJECT, opening.name, config=opening.settings, embed=False)
        write_atomically(record_path, json.dumps({"id": self._run.id}) + "\n")

    def write(self, lines: Sequence[Line]) -> None:
        for line in lines:
            row: dict[str, Any] = dict(values(line))
            if "sample" in line:
                row["sample"] = trackio.Markdown(f"```text\n{line['sample']}\n```")
            self._run.log(row, step=line["step"])

    def close(self, is_done: bool) -> None:
        self._run.finish()


opened = Trackio
