"""A training, from what the user asks for to its last checkpoint. The command and the library both call `carry_out`."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import gpt
from gpt import checkpoint, plan, pretrained
from gpt.checkpoint import Checkpoint
from gpt.config import PRESETS, TrainConfig
from gpt.distributed.ranks import ALONE, Ranks
from gpt.errors import UserError
from gpt.metrics.trackers.following import check_tracker, following
from gpt.run import ROOT, Run
from gpt.system.console import Console
from gpt.trainer import Trainer


@dataclass(frozen=True)
class Asked:
    """What the user asks for, by the options of `hipgpt train`. None or False stands for an option that is left out.

    `settings` has the explicit settings of the text, the tokenizer, the model and the training, by the names of the
    fields of `DataConfig`, `TokenizerConfig`, `ModelConfig` and `TrainConfig`. Raises UserError if options contradict
    each other, and for a preset and for a tracker that do not exist.
    """

    run_name: str | None = None
    runs_dir: Path = ROOT
    preset: str | None = None
    device: str = "auto"
    blas: str = "auto"
    resume: bool = False
    ckpt: str | None = None
    source: str | None = None  # --from
    reset: bool = False
    global_batch: int | None = None
    shard_optimizer: bool = False
    track: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.source is not None and (self.resume or self.ckpt is not None):
            other = "--resume" if self.resume else f"--ckpt {self.ckpt}"
            raise UserError(
                f"--from {self.source} begins a new run, but {other} goes on with one: leave one of them out"
            )
        if self.preset is not None and self.preset not in PRESETS:
            raise UserError(f"--preset is {self.preset}, but must be one of {', '.join(PRESETS)}")
        if self.track is not None:
            check_tracker(self.track)


class Ended(NamedTuple):
    """A training that has ended: its run, its last step, and the step with the lowest validation loss, if there is one.

    `stopped_by` is the number of the signal that ended it before its last step. `was_done` says that the run had
    nothing left to do.
    """

    run: Run
    step: int
    best_step: int | None = None
    stopped_by: int | None = None
    was_done: bool = False


def carry_out(asked: Asked, console: Console, ranks: Ranks = ALONE) -> Ended:
    """Train as the user asks. All `ranks` call this together.

    Raises UserError for whatever the user can correct; docs/formats.md says what is then on the disk.
    """
    name, settings = asked.run_name, asked.settings
    run, start = None, None
    if ranks.is_first:
        run, start = plan.locate(name, asked.resume, asked.ckpt, asked.runs_dir)
    with run.lock() if run else nullcontext():
        name = ranks.share(run.name if run and asked.ckpt is None else name)
        # Look again, now that no other process writes to the run: no decision below is older than the lock.
        run, start = plan.locate(name, asked.resume, asked.ckpt, asked.runs_dir)
        if ranks.share(start and asked.resume and plan.is_done(start, settings.get("total_steps"))):
            if start and ranks.is_first:
                _finish(start, console)
            return Ended(run, start.step if start else 0, was_done=True)
        with ranks.first_goes_ahead():
            origin = pretrained.find(asked.source, asked.runs_dir) if asked.source is not None else None
            model, train = plan.settle(settings, asked.preset, start, asked.resume, origin)
            train = plan.shared_out(train, settings, start, asked.global_batch, ranks.size)
        inherited = start is not None and "precision" not in settings
        ops, train = plan.select_ops(asked.device, asked.blas, train, inherited, ranks)
        console.line(f"Device: {ops.description}")
        chosen = plan.make(
            run, start, model, train, flags=settings, preset=asked.preset, reset=asked.reset, console=console,
            ranks=ranks, origin=origin,
        )  # fmt: skip
        plan.agree(chosen, ops, ranks, asked.shard_optimizer)
        ranks.connect(ops, asked.shard_optimizer)
        plan.announce(chosen, ops, console, ranks, asked.shard_optimizer)
        device = ops.description if ranks.size == 1 else f"{ranks.size} x {ops.description}"
        train = replace(chosen.train_config, device=device)
        trainer = Trainer(
            run, chosen.model_config, train, chosen.batches, chosen.corpus.tokenizer, ops, console, start=start,
            ranks=ranks, first_weights=chosen.origin.cut(model.max_seq_len).weights if chosen.origin else None,
        )  # fmt: skip
        with _tracked(asked.track, chosen, train, console, ranks) as done:
            stopped_by = trainer.train()
            if stopped_by is None:
                done()
    return Ended(run, trainer.step, trainer.best.step if trainer.best else None, stopped_by)


def _finish(start: Checkpoint, console: Console) -> None:
    """Complete a run that has nothing left to do: a killed process may have left links and old checkpoints."""
    checkpoint.finish(start)
    console.line(
        f"Run {start.run.name} is done: it has reached step {start.step} of {start.step}. "
        f"To train on: hipgpt train --ckpt {start.run.latest_weights_path} --steps N"
    )


def _tracked(
    tracker: str | None, chosen: plan.Plan, train: TrainConfig, console: Console, ranks: Ranks
) -> AbstractContextManager[Callable[[], None]]:
    """Inside the `with`, the log goes on to the tracker. It yields a function that says that the run is done."""
    if tracker is None or not ranks.is_first:
        return nullcontext(lambda: None)
    settings = {
        **chosen.model_config.to_json(), **train.to_json(), "tokens": len(chosen.corpus.tokens),
        "hipgpt": gpt.__version__,
    }  # fmt: skip
    del settings["computed"]
    return following(tracker, chosen.run, settings, console)
