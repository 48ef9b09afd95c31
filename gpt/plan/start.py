"""The run to train, and the checkpoint to start from."""

from pathlib import Path

from gpt import checkpoint
from gpt.checkpoint import Checkpoint
from gpt.errors import UserError
from gpt.history import owes_result
from gpt.run import ROOT, Run


def locate(run_name: str | None, resume: bool, ckpt: str | None, root: Path = ROOT) -> tuple[Run, Checkpoint | None]:
    """The run under `root` to train and the checkpoint to start from (None: fresh weights). Writes nothing.

    Raises UserError if training would overwrite a checkpoint, or mix two trainings in one run.
    """
    if resume and ckpt is None:
        if run_name is None:
            raise UserError("--resume needs --run-name: which run should be resumed? `hipgpt runs` lists them")
        run = Run(run_name, root)
        return run, _trained_here(checkpoint.load(run))
    if ckpt is None:
        run = Run(Run.new_name() if run_name is None else run_name, root)
        if run.has_checkpoints:
            raise UserError(
                f"run {run.name} already has checkpoints: go on with --resume or --ckpt, or take another --run-name"
            )
        return run, None
    start = _trained_here(checkpoint.find(ckpt))
    if start.val_loss is not None:
        raise UserError(
            f"--ckpt {ckpt} is a best checkpoint, which is weights without the optimizer's state, and training cannot "
            "go on from those: name another one, or start a new run from its weights with --from"
        )
    run = start.run if run_name is None else Run(run_name, root)
    if run.path.exists() and run.path.samefile(start.run.path):
        run, in_the_way = start.run, [step for step in start.run.steps() if step > start.step]
    else:
        in_the_way = run.steps()
        if run.has_checkpoints and not in_the_way:
            raise UserError(f"run {run.name} already has a checkpoint of its own: take another --run-name")
    if in_the_way:
        raise UserError(
            f"run {run.name} already has step {in_the_way[-1]}, which going on from {ckpt} would overwrite: "
            "continue that one, or take another --run-name"
        )
    return run, start


def _trained_here(start: Checkpoint) -> Checkpoint:
    """Returns `start`. Raises UserError if it was imported, because nothing can go on without an optimizer's state."""
    if start.imported:
        raise UserError(
            f"run {start.run.name} has imported weights, without an optimizer's state that training could go on with: "
            f"start a new run from them with --from {start.run.name}{start.run.elsewhere}"
        )
    return start


def is_done(start: Checkpoint | None, steps: int | None) -> bool:
    """Whether a run has done all of its steps and evaluations. `steps` is their number (None: the run's own)."""
    if start is None or start.step != (start.train_config.total_steps if steps is None else steps):
        return False
    return not owes_result(start.run, start.train_config, start.step)
