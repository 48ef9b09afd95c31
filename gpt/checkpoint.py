"""Checkpoints: safetensors and JSON on disk, so written that a kill at any moment leaves a run that goes on.

A checkpoint is three files, see `Run`. All three are written under temporary names first, and are on disk before the
first rename. Then they take their places: weights, optimizer, config. The config's rename is the one that counts: a
step that has a config is whole. `latest_config.json` follows, and says where the run stands, unless there is a higher
step: then a kill or a power cut came between. docs/formats.md explains each prefix of this order.

The best checkpoint so far is weights and config alone, in files of its own that pruning never touches. It is written
in the same way, and `best_config.json`, moved last, is the one truth about it. So each evaluation that is the best so
far costs one file of the weights (4 bytes a parameter); a checkpoint takes three times as much.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpt.config import ModelConfig, TrainConfig
from gpt.errors import UserError, shown
from gpt.optim import COUNTERS, optimizer_shapes
from gpt.parameters import parameter_shapes
from gpt.run import CONFIG, OPTIMIZER, WEIGHTS, Run
from gpt.system.files import atomic_paths, link_atomically, remove
from gpt.system.filesystem import sync_directory
from gpt.system.reading import COUNT, NUMBER, PATH, Schema, optional, read_json, schema_of
from gpt.system.tensors import DTYPES, Layout, TensorFile, open_tensors, write_tensors

_MOST_STEPS = 2**53  # that a counter may have: float64 holds no more of them exactly
_CONFIG: Schema = {
    "model": schema_of(ModelConfig),
    "training": schema_of(TrainConfig),
    "checkpoint": {"latest": PATH, "step": COUNT, "val_loss": optional(NUMBER)},
}
_ELSE = "restore it, or name another checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose config and weights file have been found to agree."""

    run: Run
    step: int
    model: ModelConfig
    train: TrainConfig
    path: Path  # the weights file
    val_loss: float | None = None  # of a best checkpoint, which is weights alone
    # The weights file is open from the start, so that a trainer which prunes cannot take it away from a reader.
    _weights: TensorFile | None = field(default=None, repr=False, compare=False)

    def weights(self) -> Mapping[str, np.ndarray]:
        """The weights: float32, in the names, order and shapes of `parameter_shapes`, each read when it is asked for.

        Raises UserError, naming the file, if it is missing, damaged or does not fit the config.
        """
        return self._weights or _opened_weights(self.path, self.model)

    def optimizer(self) -> tuple[Mapping[str, np.ndarray], dict[str, int]]:
        """The optimizer's float32 tensors, named as `optimizer_shapes` names them, and the counters `COUNTERS`.

        Raises UserError as `weights` does; only resuming needs this file.
        """
        path = self.path.with_name(f"{self.path.stem}_optimizer.safetensors")
        names = optimizer_shapes(self.model, self.train.optimizer)
        tensors = open_tensors(path, _optimizer_layout(self.model, self.train), names, _ELSE)
        counters = {name: int(tensors[name]) for name in COUNTERS}
        for name, count in counters.items():
            if not 0 <= count <= _MOST_STEPS:
                raise UserError(f"{path} is damaged: {name} is {count}, but must be from 0 to {_MOST_STEPS}: {_ELSE}")
        return tensors, counters


def save(
    run: Run,
    step: int,
    model: ModelConfig,
    train: TrainConfig,
    weights: Mapping[str, np.ndarray],
    optimizer: Mapping[str, np.ndarray],
    counters: Mapping[str, int],
) -> Checkpoint:
    """Write the checkpoint of `step` and make it the latest. The caller holds `run.lock()`.

    `weights` are named as `parameter_shapes` names them and `optimizer` as `optimizer_shapes`, all float32; `counters`
    has the names `COUNTERS`.
    Raises UserError if the files cannot be written (no space, no permission); what was saved before is then intact.
    """
    names = parameter_shapes(model)
    own = f"{run.name}_step{step}"  # whatever the run was called when this step was saved before
    weights_path, optimizer_path, config_path = (run.path / (own + part) for part in (WEIGHTS, OPTIMIZER, CONFIG))
    config = _config(run, step, model, train, weights_path)
    try:
        with atomic_paths(weights_path, optimizer_path, config_path) as (weights_file, optimizer_file, config_file):
            write_tensors(weights_file, {name: weights[name] for name in names})
            tensors = {name: optimizer[name] for name in optimizer_shapes(model, train.optimizer)}
            write_tensors(optimizer_file, tensors | {name: np.array(counters[name], np.int64) for name in COUNTERS})
            config_file.write_text(config, encoding="utf-8")
        _point_latest_at(run, weights_path, config_path)
    except OSError as error:
        raise UserError(f"cannot save {weights_path}: {_reason(error)}") from error
    return Checkpoint(run, step, model, train, weights_path)


def finish(start: Checkpoint) -> None:
    """Complete the work of a process that was killed after the last save of its run: links and pruning.

    The caller holds the run's lock.

    Raises UserError if the links cannot be written.
    """
    run = start.run
    try:
        if not run.latest_config_path.exists() or _read(run, run.latest_config_path).step != start.step:
            _point_latest_at(run, start.path, run.config_path(start.step))
    except OSError as error:
        raise UserError(f"cannot write {run.latest_config_path}: {_reason(error)}") from error
    prune(run, start.train.keep_last)


def _point_latest_at(run: Run, weights_path: Path, config_path: Path) -> None:
    link_atomically(run.latest_weights_path, weights_path.name, copied=False)
    link_atomically(run.latest_config_path, config_path.name)


def save_best(
    run: Run, step: int, model: ModelConfig, train: TrainConfig, weights: Mapping[str, np.ndarray], val_loss: float
) -> Checkpoint:
    """Make the weights of `step` the best checkpoint, in place of the one before. The caller holds `run.lock()`.

    Raises UserError if the files cannot be written; the one before is then intact.
    """
    weights_path, config_path = run.best_step_paths(step)
    config = _config(run, step, model, train, weights_path, val_loss=val_loss)
    try:
        with atomic_paths(weights_path, config_path) as (weights_file, config_file):
            write_tensors(weights_file, {name: weights[name] for name in parameter_shapes(model)})
            config_file.write_text(config, encoding="utf-8")
        link_atomically(run.best_weights_path, weights_path.name, copied=False)
        link_atomically(run.best_config_path, config_path.name)
    except OSError as error:
        raise UserError(f"cannot save {weights_path}: {_reason(error)}") from error
    _forget_other_best(run, weights_path)
    return Checkpoint(run, step, model, train, weights_path, val_loss)


def forget_best(run: Run) -> None:
    """Remove the best checkpoint, if there is one: its links first, so that none points at nothing."""
    for path in (run.best_config_path, run.best_weights_path, *_best_files(run)):
        path.unlink(missing_ok=True)


def _forget_other_best(run: Run, weights_path: Path) -> None:
    """Remove the files of best checkpoints from before that of `weights_path`."""
    for path in _best_files(run):
        if path not in (weights_path, weights_path.with_name(weights_path.stem + CONFIG)):
            remove(path)


def _best_files(run: Run) -> list[Path]:
    return [
        run.path / f"{prefix}_step{step}{part}"
        for (prefix, step), parts in run.parts(best=True).items()
        for part in sorted(parts, reverse=True)  # the config first: "_" comes after "."
    ]


def best(run: Run) -> Checkpoint | None:
    """The best checkpoint so far; None if there is none that loads."""
    with suppress(UserError):
        found = _settled(run, lambda: _read(run, run.best_config_path))
        return found if found.val_loss is not None else None
    return None


def load(run: Run, step: int | None = None, best: bool = False) -> Checkpoint:
    """The run's checkpoint of `step`, or its `best` one, or else the latest.

    `latest_config.json` and `best_config.json` say which those are, be they links or plain files. But the latest is
    that of the highest step, if a kill or a power cut came before `latest_config.json` named it.
    May be called beside a process that trains the run, and saves and removes checkpoints meanwhile: the weights
    file stays open, so it can be read even if it is removed.
    Raises UserError, naming the file, if there is none, or if it is damaged or its parts do not fit together, and for
    a step together with `best`.
    """
    if best and step is not None:
        raise UserError("--best and --step exclude each other: the best checkpoint is of the step that was best")
    return _settled(run, lambda: _load(run, step, best))


def _settled(run: Run, read: Callable[[], Checkpoint]) -> Checkpoint:
    """Returns `read()`. Calls it again if it fails while another process changes the run."""
    before: Any = None
    while True:
        try:
            return read()
        except UserError:
            now = [_identity(run.latest_config_path), _identity(run.best_config_path), run.steps()]
            if now == before:
                raise
            before = now


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Numbers that change whenever the file or link is replaced. They come without reading it, as it may be a pipe."""
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
        return _read(run, run.best_config_path)
    steps = run.steps()
    if step is not None:
        if step not in steps:
            there = f"there are steps {', '.join(map(str, steps))}" if steps else "there are none"
            raise UserError(f"{run.path} has no checkpoint of step {step}: {there}")
        return _read(run, run.config_path(step))
    if run.latest_config_path.exists():
        latest = _read(run, run.latest_config_path)
        if not steps or steps[-1] <= latest.step:
            return latest
    if steps:
        return _read(run, run.config_path(steps[-1]))
    if os.path.lexists(run.latest_config_path):
        raise UserError(f"{run.latest_config_path} is a broken link: put its target back, or take another run")
    if os.path.lexists(run.best_config_path):
        raise UserError(
            f"{run.path} was stopped before its first checkpoint and has only its best weights: use them with --best, "
            "or train the run anew without --resume"
        )
    raise UserError(f"{run.path} has no checkpoint yet: train it first, without --resume")


def find(path: str | os.PathLike) -> Checkpoint:
    """The checkpoint that a weights file, a config file or a `latest_*` link belongs to, in any directory.

    Its `run` is the directory the file lies in. Raises UserError as `load` does.
    """
    path = Path(path)
    named = Run.at(path.parent.resolve())
    if path.name == named.latest_weights_path.name and not path.exists() and named.latest_config_path.exists():
        path = named.latest_config_path  # on a file system that has no links
    path = path.resolve()
    run = Run.at(path.parent)
    if not path.is_file():
        raise UserError(f"--ckpt {path} is not a file: name a checkpoint's weights, its config or a latest_* link")
    if path.suffix == ".json":
        return _read(run, path)
    links = {run.latest_weights_path: run.latest_config_path, run.best_weights_path: run.best_config_path}
    if path in links:  # a plain file, in a run copied by something that follows links
        return _read(run, links[path])
    return _read(run, path.with_name(f"{path.stem}_config.json"), path)


def prune(run: Run, keep_last: int) -> None:
    """Remove all checkpoints but those of the `keep_last` highest steps and the target of `latest_*`.

    Also removes files that a killed save or pruning left without a config, and all best checkpoints but the best.
    The caller holds `run.lock()`.
    A file that the system does not let go now (on Windows, one that a reader has open) goes the next time.
    Raises UserError, having removed nothing, if the latest checkpoint does not load.
    """
    latest = {load(run).path.name, run.latest_weights_path.resolve().name}
    if run.latest_config_path.exists():
        latest.add(_read(run, run.latest_config_path).path.name)
    kept = run.steps()[-keep_last:]
    gone = []
    for (prefix, step), parts in run.parts().items():
        is_ours = CONFIG in parts or OPTIMIZER in parts or prefix == run.name
        is_whole = CONFIG in parts
        if is_ours and f"{prefix}_step{step}{WEIGHTS}" not in latest and not (is_whole and step in kept):
            gone.append((f"{prefix}_step{step}", parts))
    for stem, _ in gone:
        remove(run.path / f"{stem}{CONFIG}")
    if gone:
        sync_directory(run.path)  # a step that has a config is whole, after a power cut too
    for stem, parts in gone:
        if not (run.path / f"{stem}{CONFIG}").exists():
            for part in (WEIGHTS, OPTIMIZER):
                if part in parts:
                    remove(run.path / f"{stem}{part}")
    if (kept_best := best(run)) is not None:
        _forget_other_best(run, kept_best.path)


def file_bytes(model: ModelConfig, train: TrainConfig) -> tuple[int, int]:
    """Bytes of the tensors in a checkpoint's two large files: the weights, and the optimizer's state."""
    layouts = _weights_layout(model), _optimizer_layout(model, train)
    sizes = [[DTYPES[dtype].itemsize * math.prod(shape) for dtype, shape in each.values()] for each in layouts]
    return sum(sizes[0]), sum(sizes[1])


def largest_tensor(model: ModelConfig) -> int:
    """Bytes of the largest tensor of a checkpoint: loading and exporting hold one at a time in memory."""
    return 4 * max(map(math.prod, parameter_shapes(model).values()))


def _config(run: Run, step: int, model: ModelConfig, train: TrainConfig, weights_path: Path, **more: float) -> str:
    """The text of a config file."""
    sections = {
        "model": model.to_json(),
        "tokenizer": {"path": run.tokenizer_path.name, "tokens_path": run.tokens_path.name},
        "training": {**train.to_json(), "steps": step},
        "checkpoint": {"latest": weights_path.name, "step": step, **more},
    }
    return json.dumps(sections, indent=2) + "\n"


def _read(run: Run, config_path: Path, weights_path: Path | None = None) -> Checkpoint:
    """The checkpoint of a config file; its weights are the file it names, unless `weights_path` says otherwise."""
    try:
        config = read_json(config_path, _CONFIG, "a checkpoint's config", _ELSE)
    except FileNotFoundError:
        raise UserError(f"{config_path} is missing: {_ELSE}") from None
    try:
        model, train = ModelConfig.from_json(config["model"]), TrainConfig.from_json(config["training"])
        # The name alone counts: the file lies beside its config, wherever the directory has been moved.
        named = config_path.with_name(Path(config["checkpoint"]["latest"]).name)
    except (ValueError, UserError) as error:
        raise UserError(f"{config_path} is not a checkpoint's config: {_reason(error)}: {_ELSE}") from error
    val_loss = config["checkpoint"].get("val_loss")
    path = weights_path or named
    weights = _opened_weights(path, model)
    return Checkpoint(run, config["checkpoint"]["step"], model, train, path, val_loss, weights)


def _weights_layout(model: ModelConfig) -> Layout:
    return {name: ("F32", shape) for name, shape in parameter_shapes(model).items()}


def _optimizer_layout(model: ModelConfig, train: TrainConfig) -> Layout:
    tensors: Layout = {name: ("F32", shape) for name, shape in optimizer_shapes(model, train.optimizer).items()}
    return tensors | dict.fromkeys(COUNTERS, ("I64", ()))


def _opened_weights(path: Path, model: ModelConfig) -> TensorFile:
    return open_tensors(path, _weights_layout(model), parameter_shapes(model), _ELSE)


def _reason(error: Exception) -> str:
    """The cause of an error, in one line."""
    return shown(" ".join((getattr(error, "strerror", None) or str(error)).split()), quoted=False)
