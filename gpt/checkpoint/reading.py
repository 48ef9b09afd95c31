"""Finds a run's checkpoints and reads them, also while another process trains the run."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gpt.checkpoint.contents import ADVICE, CONFIG_SCHEMA, Checkpoint, opened, trained_layout
from gpt.config import ModelConfig, TrainConfig
from gpt.errors import UserError, reason
from gpt.run import CONFIG, OPTIMIZER, WEIGHTS, Run
from gpt.system.reading import read_json


def load(run: Run, step: int | None = None, best: bool = False) -> Checkpoint:
    """The run's checkpoint of `step`, or its `best` one, or else the latest.

    `latest_config.json` and `best_config.json` (links or plain files) name the latest and the best one. But if a kill
    or a power cut came before `latest_config.json` was pointed at a higher step, that step is the latest.

    May be called while another process trains the run, and saves and removes checkpoints. The weights file stays open,
    so it can be read even if it is removed.

    Raises UserError, which names the file, if there is no such checkpoint, if it is damaged, or if its parts do not fit
    together; and for a step together with `best`.
    """
    if best and step is not None:
        raise UserError(f"--best has a step of its own, but --step {step} names one: leave one of them out")
    return _settled(run, lambda: _load(run, step, best))


def best(run: Run) -> Checkpoint | None:
    """The best checkpoint so far; None if there is none that loads."""
    with suppress(UserError):
        found = _settled(run, lambda: read(run, run.best_config_path))
        return found if found.val_loss is not None else None
    return None


def find(path: str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint that a weights file, a config file or a `latest_*` link belongs to, in any directory.

    Its `run` is the directory that the file lies in. Raises UserError as `load` does.

    Example:
        find("checkpoints/r/latest_checkpoint.safetensors") and find("checkpoints/r/r_step8_config.json")
    """
    given = path = Path(path)
    named = Run.at(path.parent.resolve())
    if path.name == named.latest_weights_path.name and not path.exists() and named.latest_config_path.exists():
        path = named.latest_config_path  # on a file system without links
    path = path.resolve()
    run = Run.at(path.parent)
    if not path.is_file():
        fault = "is a directory" if path.is_dir() else "does not exist"
        raise UserError(f"--ckpt {given} {fault}: name a checkpoint's weights, its config or a latest_* link in a run")
    _raise_if_foreign(run)
    if path.suffix == ".json":
        return read(run, path)
    links = {run.latest_weights_path: run.latest_config_path, run.best_weights_path: run.best_config_path}
    if path in links:  # a plain file: the run was copied by a program that follows links
        return read(run, links[path])
    config_path = path.with_name(f"{path.stem}{CONFIG}")
    if not config_path.exists() and (path.name.endswith(OPTIMIZER) or path.suffix != WEIGHTS):
        raise UserError(
            f"--ckpt {given} is not a checkpoint's weights: name those, its config or a latest_* link in a run"
        )
    return read(run, config_path, path)


def _settled(run: Run, read: Callable[[], Checkpoint]) -> Checkpoint:
    """Returns `read()`. Calls it again if it fails while another process changes the run."""
    before: object = None
    while True:
        try:
            return read()
        except UserError:
            now = [_identity(run.latest_config_path), _identity(run.best_config_path), run.steps()]
            if now == before:
                raise
            before = now


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Numbers that change when a file or link is replaced. The file is not read, because it may be a pipe."""
    with suppress(OSError):
        found = path.lstat()
        return found.st_ino, found.st_mtime_ns, found.st_size
    return None


def _load(run: Run, step: int | None, best: bool) -> Checkpoint:
    if not run.path.is_dir():
        raise UserError(f"there is no run {run.path}: `hipgpt runs` lists those there are")
    if best:
        if not os.path.lexists(run.best_config_path):
            raise UserError(f"{run.path} has no best checkpoint, as its model was never evaluated: leave out --best")
        return read(run, run.best_config_path)
    steps = run.steps()
    if step is not None:
        if step not in steps:
            there = f"there are steps {', '.join(map(str, steps))}" if steps else "there are none"
            raise UserError(f"{run.path} has no checkpoint of step {step}: {there}")
        return read(run, run.config_path(step))
    if run.latest_config_path.exists():
        latest = read(run, run.latest_config_path)
        if not steps or steps[-1] <= latest.step:
            return latest
    if steps:
        return read(run, run.config_path(steps[-1]))
    if os.path.lexists(run.latest_config_path):
        raise UserError(f"{run.latest_config_path} is a broken link: put its target back, or take another run")
    if os.path.lexists(run.best_config_path):
        raise UserError(
            f"{run.path} was stopped before its first checkpoint and has only its best weights: use them with --best, "
            "or train the run anew without --resume"
        )
    _raise_if_foreign(run)
    raise UserError(f"{run.path} has no checkpoint yet: train it first, without --resume")


def _raise_if_foreign(run: Run) -> None:
    """Raise UserError if a directory has a model of Hugging Face's and no checkpoint."""
    if (run.path / "config.json").exists() and not run.steps():
        raise UserError(
            f"{run.path} has a model of Hugging Face's, not a checkpoint: make a run of it with `hipgpt import "
            f"{run.path} --run-name NAME`"
        )


def read(run: Run, config_path: Path, weights_path: Path | None = None) -> Checkpoint:
    """The checkpoint with this config file. Its weights are in `weights_path`, or else in the file that it names."""
    try:
        config = read_json(config_path, CONFIG_SCHEMA, "a checkpoint's config", ADVICE)
    except FileNotFoundError:
        raise UserError(f"{config_path} is missing: {ADVICE}") from None
    try:
        model_config, train_config = ModelConfig.from_json(config["model"]), TrainConfig.from_json(config["training"])
        # Only the name counts: the file lies beside its config, wherever the directory has been moved.
        named = config_path.with_name(Path(config["checkpoint"]["latest"]).name)
    except (ValueError, UserError) as error:
        raise UserError(f"{config_path} is not a checkpoint's config: {reason(error)}: {ADVICE}") from error
    path, described = weights_path or named, config["checkpoint"]
    return Checkpoint(
        run, described["step"], model_config, train_config, path, described.get("val_loss"),
        described.get("imported", False), described.get("source"),
        opened(path, trained_layout(model_config, train_config)),
    )  # fmt: skip
