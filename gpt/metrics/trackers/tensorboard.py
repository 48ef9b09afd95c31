"""TensorBoard: a file of events in the run's directory (extra `tensorboard`: tensorboardX).

The file is made anew from the log each time that the run starts. So it never has a step twice, whatever was logged
after the checkpoint from which a run is resumed. Its first event tells a TensorBoard that is open to forget all steps
that it has read. Events are written by this process, without tensorboardX's thread, so that an error is raised here.
"""

import time
from collections.abc import Sequence
from contextlib import suppress

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from gpt.metrics.trackers.interface import Line, Opening
from gpt.metrics.trackers.log import values

SUFFIX = ".hipgpt"  # end of the file's name
_MEASURES = ("train/loss", "val/loss")  # shown beside the hyperparameters


class TensorBoard:
    """See `Tracker`."""

    def __init__(self, opening: Opening) -> None:
        self.place = f"tensorboard --logdir {opening.directory.parent}"
        for path in opening.directory.glob(f"events.out.tfevents.*{SUFFIX}"):
            with suppress(PermissionError):  # a reader has it open, on Windows
                path.unlink()
        self._file = EventsWriter(str(opening.directory / "events"), SUFFIX)
        self._origin: float | None = None
        self._file.write_event(Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START)))
        experiment, start, self._end = summary.hparams(opening.settings, dict.fromkeys(_MEASURES, 0.0))
        for each in (experiment, start):
            self._add(each, 0, time.time())
        self._file.flush()

    def write(self, lines: Sequence[Line]) -> None:
        # The log has seconds of training, TensorBoard the time of day: they are those of the last line.
        if self._origin is None:
            self._origin = time.time() - lines[-1].get("time", 0)
        for line in lines:
            wall_time = self._origin + line.get("time", 0)
            for name, value in values(line).items():
                self._add(summary.scalar(name, value), line["step"], wall_time)
            if "sample" in line:
                self._add(summary.text("sample", _as_markdown(line["sample"])), line["step"], wall_time)
        self._file.flush()

    def close(self, is_done: bool) -> None:
        if is_done:
            self._add(self._end, 0, time.time())
        self._file.close()

    def _add(self, values: summary.Summary, step: int, wall_time: float) -> None:
        self._file.write_event(Event(wall_time=wall_time, step=step, summary=values))


def _as_markdown(text: str) -> str:
    """A text that is shown as it stands: Markdown shows lines that are indented by four spaces so."""
    return "".join(f"    {line}\n" for line in text.splitlines())


opened = TensorBoard
