"""The log of a run, metrics.jsonl, and the conclusions that its validation losses allow about the training."""

import errno
import json
import math
import os
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from gpt.config import TrainConfig
from gpt.run import Run
from gpt.system.files import write_atomically
from gpt.system.filesystem import note, sync

RISES = 3  # rises of the validation loss in a row that show that a model memorizes
NOISE = 1.01  # factor by which a loss may be above the best one by chance

Evaluation = tuple[int, float]  # step and validation loss, NaN if that was not finite


class History:
    """The log of one run, which goes on after `step`. The caller holds the run's lock.

    Lines after `step` are dropped: a killed run logged them after the checkpoint that it now resumes from. Each new
    line says how long and on how many tokens the run has trained. Both count on from the last line that has them. If
    no line has them, because an older version wrote the log, the tokens follow from the steps.

    The log belongs to the checkpoints: `sync` makes all lines so far durable before a checkpoint of their step is, so
    that a run that resumes from it has them. A line that cannot be written (the disk is full) stays in memory, and is
    written with the next line or the next checkpoint.

    `evaluations` has the validation losses so far, by step. All conclusions follow from them, so that a run that was
    killed and resumed comes to the same conclusions at the same steps as a run that was not. Losses on another
    held-out part of the text cannot be compared: a run that goes on with another `val_fraction` begins to count anew.

    Of several ranks only the first one `writes` the file.
    """

    def __init__(
        self,
        run: Run,
        step: int,
        tokens_per_step: int,
        train_tokens: int,
        *,
        text_start: int = 0,
        val_fraction: float | None = None,
        writes: bool = True,
    ) -> None:
        self._on_other_text = text_start * tokens_per_step
        self._path, self._tokens_per_step, self._train_tokens = run.metrics_path, tokens_per_step, train_tokens
        self._val_fraction, self._writes = val_fraction, writes
        kept = [line for line in run.metrics() if line["step"] <= step]
        if writes:
            write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._unwritten = ""
        self.evaluations = validation_losses(kept, val_fraction)
        self._evaluated = {line["step"] for line in kept if "val_loss" in line}
        self._samples = {line["step"] for line in kept if "sample" in line}
        self.seconds = 0.0  # of training, up to `step`
        self._counted = (0, 0)  # a step, and the tokens that were trained on up to its end
        for line in kept:
            if "time" in line and "tokens" in line:
                self.seconds, self._counted = line["time"], (line["step"], line["tokens"])

    def passes(self, step: int) -> float:
        """How many times the run has gone over the training part of its text by the end of `step`.

        Up to `text_start` it read another text.
        """
        return (self._tokens(step) - self._on_other_text) / self._train_tokens

    def record(self, step: int, seconds: float, **values: Any) -> None:
        """Append one line. `seconds` is the time that the run has trained, `self.seconds` of it before this start.

        JSON has no NaN, so a number that is not finite becomes null.
        """
        place = {"time": round(seconds, 3), "tokens": self._tokens(step), "passes": round(self.passes(step), 4)}
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        if "val_loss" in values:
            finite["val_fraction"] = self._val_fraction
            self._evaluated.add(step)
        line = {"step": step, **place, **finite}
        self._unwritten += json.dumps(line) + "\n"
        self._write()
        self.evaluations += validation_losses([line])

    def sync(self) -> None:
        """Make the lines so far durable. A failure only costs a note: a log is not worth losing a checkpoint."""
        self._write()
        try:
            sync(self._path)
        except OSError as error:
            note("log", f"{self._path} cannot be synced to its disk: {error.strerror}")

    def _write(self) -> None:
        if not self._unwritten or not self._writes:
            return
        try:
            with open(self._path, "ab", buffering=0) as file:
                end, data = file.seek(0, os.SEEK_END), self._unwritten.encode()
                try:
                    if file.write(data) < len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    file.truncate(end)  # no half lines
                    raise
        except OSError as error:
            note("log", f"{self._path} cannot be written ({error.strerror}): its lines are kept and tried again")
        else:
            self._unwritten = ""

    @property
    def memorizes(self) -> bool:
        """Whether the last evaluation is the first since the best one to show that the model memorizes its text.

        An evaluation shows it if its loss is the last of RISES rises in a row, and above the best loss times NOISE. For
        example after 2.50, 2.52, 2.51, 2.53, 2.54 and 2.56 the last one does. One more loss of 2.60 does not say it
        again.
        """
        since_best = [loss for _, loss in self.evaluations[len(self.evaluations) - self.without_best - 1 :]]
        rises, shown = 0, []
        for number, (before, loss) in enumerate(pairwise(since_best), start=1):
            rises = rises + 1 if loss > before else 0
            if rises >= RISES and loss > NOISE * since_best[0]:
                shown.append(number)
        return shown[:1] == [len(since_best) - 1]

    @property
    def without_best(self) -> int:
        """The number of evaluations since the best one, or of all evaluations if no loss was finite."""
        best = lowest(self.evaluations)
        return len(self.evaluations) - (1 + self.evaluations.index(best) if best else 0)

    def has_evaluated(self, step: int) -> bool:
        return step in self._evaluated

    def has_sampled(self, step: int) -> bool:
        return step in self._samples

    def _tokens(self, step: int) -> int:
        counted, tokens = self._counted
        return tokens + (step - counted) * self._tokens_per_step


def owes_result(run: Run, config: TrainConfig, step: int) -> bool:
    """Whether the run's log lacks the evaluation or the sample that is due at `step`, because of a signal."""
    lines = [line for line in run.metrics() if line["step"] == step]
    due = [("val_loss", config.eval_every), ("sample", config.sample_every)]
    return any(
        every > 0 and (step == config.total_steps or step % every == 0) and not any(key in line for line in lines)
        for key, every in due
    )


def validation_losses(lines: Iterable[dict[str, Any]], val_fraction: float | None = None) -> list[Evaluation]:
    """The evaluations among the lines of metrics.jsonl (`Run.metrics`), or only those with this fraction held out.

    Lines from before there was a key `val_fraction` count as well.
    """
    evaluated = [line for line in lines if "val_loss" in line]
    if val_fraction is not None:
        evaluated = [line for line in evaluated if line.get("val_fraction") in (val_fraction, None)]
    found = [(line["step"], line["val_loss"]) for line in evaluated]
    return [(step, math.nan if loss is None else loss) for step, loss in found]


def lowest(evaluations: Iterable[Evaluation]) -> Evaluation | None:
    """The first evaluation with the lowest finite loss, or None if no loss is finite."""
    finite = [each for each in evaluations if math.isfinite(each[1])]
    return min(finite, key=lambda each: each[1]) if finite else None
