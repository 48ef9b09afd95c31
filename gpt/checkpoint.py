"""Checkpoints: safetensors and JSON files, written so that a kill at any moment leaves a run that can go on.

A checkpoint is three files (see `Run`). All three are written under temporary names, and are on the disk before the
first rename. Then they are moved into place: weights, optimizer, config. The rename of the config is the one that
counts: a step that has a config is whole. Last, `latest_config.json` is pointed at it. If there is a whole step above
the one that it names, a kill or a power cut came before that. docs/formats.md explains the state after each write.

With `--lora` the weights of a checkpoint are adapters alone. The run's base, the weights that they were trained beside,
is written once, before the first step, and complete: a run needs nothing that is elsewhere.

The best checkpoint so far is weights and config alone, in files of its own that pruning never touches. It is written
the same way, and `best_config.json`, moved last, decides which one is the best. So each evaluation that is the best so
far writes one file of weights (4 bytes a parameter); a checkpoint writes three times as much.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gpt.config import ModelConfig, TrainConfig
from gpt.errors import UserError, shown
from gpt.lora import Merged, trained_shapes
from gpt.optim import COUNTERS, optimizer_shapes
from gpt.parameters import parameter_shapes
from gpt.run import CONFIG, OPTIMIZER, WEIGHTS, Run
from gpt.system.files import atomic_path, atomic_paths, commit, link_atomically, remove
from gpt.system.filesystem import sync_directory
from gpt.system.reading import COUNT, NUMBER, PATH, TRUTH, Schema, optional, read_json, schema_of
from gpt.system.tensors import DTYPES, Layout, TensorFile, open_tensors, write_tensors
from gpt.tokenizer import Tokenizer

_MOST_STEPS = 2**53  # limit for a counter, because float64 holds larger integers inexactly
_CONFIG: Schema = {
    "model": schema_of(ModelConfig),
    "training": schema_of(TrainConfig),
    "checkpoint": {"latest": PATH, "step": COUNT, "val_loss": optional(NUMBER), "imported": optional(TRUTH)},
}
_ADVICE = "restore it, or name another checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose config and weights file have been found to agree."""

    run: Run
    step: int
    model_config: ModelConfig
    train_config: TrainConfig
    path: Path  # the weights file
    val_loss: float | None = None  # for a best checkpoint only
    imported: bool = False  # True if another program trained the weights; then there is no optimizer's state
    # The open weights file. It is open from the start, so that a reader keeps it even if a trainer prunes it.
    _trained: TensorFile | None = field(default=None, repr=False, compare=False)

    def weights(self) -> Mapping[str, np.ndarray]:
        """The weights: float32, with the names, order and shapes of `parameter_shapes`, each read when it is asked for.

        Adapters are merged into them. Raises UserError, which names the file, if it is missing, damaged or does not fit
        the config.
        """
        return Merged(self.base(), self.trained()) if self.train_config.lora else self.trained()

    def trained(self) -> Mapping[str, np.ndarray]:
        """What training changes, `trained_shapes`: the adapters, or else all weights. As `weights` otherwise."""
        return self._trained or _opened(self.path, _trained_layout(self.model_config, self.train_config))

    def base(self) -> Mapping[str, np.ndarray]:
        """The weights that the adapters were trained beside. As `weights` otherwise."""
        return _opened(self.run.base_path, _layout_of(parameter_shapes(self.model_config)))

    def optimizer(self) -> tuple[Mapping[str, np.ndarray], dict[str, int]]:
        """The optimizer's float32 tensors, named as in `optimizer_shapes`, and its counters, named as in `COUNTERS`.

        Only resuming needs this file; a best checkpoint has none. Raises UserError as `weights` does.
        """
        path = self.path.with_name(f"{self.path.stem}{OPTIMIZER}")
        names = optimizer_shapes(self.model_config, self.train_config.optimizer, self.train_config.lora)
        tensors = open_tensors(path, _optimizer_layout(self.model_config, self.train_config), names, _ADVICE)
        counters = {name: int(tensors[name]) for name in COUNTERS}
        for name, count in counters.items():
            if not 0 <= count <= _MOST_STEPS:
                raise UserError(f"{path} is damaged: {name} is {count}, but must be from 0 to {_MOST_STEPS}: {_ADVICE}")
        return tensors, counters


# ---- writing -------------------------------------------------------------------------------------------------------


def save(
    run: Run,
    step: int,
    model_config: ModelConfig,
    train_config: TrainConfig,
    weights: Mapping[str, np.ndarray],
    optimizer: Mapping[str, np.ndarray],
    counters: Mapping[str, int],
) -> Checkpoint:
    """Write the checkpoint of `step` and make it the latest. The caller holds `run.lock()`.

    `weights` are named as in `trained_shapes` and `optimizer` as in `optimizer_shapes`, all float32; `counters` are
    named as in `COUNTERS`.

    Raises UserError if the files cannot be written (no space, no permission). Earlier checkpoints are then intact.
    """
    stem = f"{run.name}_step{step}"  # also if the run had another name when this step was saved before
    weights_path, optimizer_path, config_path = (run.path / (stem + part) for part in (WEIGHTS, OPTIMIZER, CONFIG))
    config = _config(run, step, model_config, train_config, weights_path)
    with _cannot(f"save {weights_path}"):
        with atomic_paths(weights_path, optimizer_path, config_path) as (weights_file, optimizer_file, config_file):
            write_tensors(weights_file, {name: weights[name] for name in _trained_layout(model_config, train_config)})
            moments = optimizer_shapes(model_config, train_config.optimizer, train_config.lora)
            tensors = {name: optimizer[name] for name in moments}
            write_tensors(optimizer_file, tensors | {name: np.array(counters[name], np.int64) for name in COUNTERS})
            config_file.write_text(config, encoding="utf-8")
        _point_latest_at(run, weights_path, config_path)
    return Checkpoint(run, step, model_config, train_config, weights_path)


def save_best(
    run: Run,
    step: int,
    model_config: ModelConfig,
    train_config: TrainConfig,
    weights: Mapping[str, np.ndarray],
    val_loss: float,
) -> Checkpoint:
    """Make the weights of `step` the best checkpoint, in place of the one before. The caller holds `run.lock()`.

    Raises UserError if the files cannot be written. The best checkpoint before is then intact.
    """
    weights_path, config_path = run.best_step_paths(step)
    config = _config(run, step, model_config, train_config, weights_path, val_loss=val_loss)
    with _cannot(f"save {weights_path}"):
        with atomic_paths(weights_path, config_path) as (weights_file, config_file):
            write_tensors(weights_file, {name: weights[name] for name in _trained_layout(model_config, train_config)})
            config_file.write_text(config, encoding="utf-8")
        link_atomically(run.best_weights_path, weights_path.name, copied=False)
        link_atomically(run.best_config_path, config_path.name)
    _forget_other_best(run, weights_path)
    return Checkpoint(run, step, model_config, train_config, weights_path, val_loss)


def save_base(run: Run, weights: Mapping[str, np.ndarray]) -> None:
    """Write the weights, named as in `parameter_shapes`, that a run trains adapters beside. The caller holds its lock.

    They are asked for one at a time. Raises UserError if the file cannot be written, and whatever `weights` raises.
    """
    with _cannot(f"save {run.base_path}"), atomic_path(run.base_path) as file:
        write_tensors(file, weights)


def save_imported(
    run: Run, model_config: ModelConfig, weights: Mapping[str, np.ndarray], tokenizer: Tokenizer
) -> Checkpoint:
    """Make a new run of weights that another program trained: a checkpoint of step 0, and its tokenizer.

    `weights` are float32 and named as in `parameter_shapes`; they are asked for one at a time. The files are made in a
    directory of their own, and one rename lets all of them take their places. The caller holds `run.lock()`.

    Raises UserError if the files cannot be written, and whatever `weights` raises. The run then has none of them.
    """
    staged, weights_path = run.staged_path, run.path / f"{run.name}_step0{WEIGHTS}"
    config_path, train_config = run.path / f"{run.name}_step0{CONFIG}", TrainConfig()
    config = _config(run, 0, model_config, train_config, weights_path, imported=True)
    remove(staged)
    try:
        with _cannot(f"save {weights_path}"):
            staged.mkdir()
            write_tensors(staged / weights_path.name, weights)
            (staged / config_path.name).write_text(config, encoding="utf-8")
            tokenizer.save(staged / run.tokenizer_path.name)
            commit(staged, run.committed_path)
            _point_latest_at(run, weights_path, config_path)
    finally:
        remove(staged)
    return Checkpoint(run, 0, model_config, train_config, weights_path, imported=True)


def finish(latest: Checkpoint) -> None:
    """Complete the links and the pruning that a killed process left undone. The caller holds the run's lock.

    Raises UserError if the links cannot be written.
    """
    run = latest.run
    with _cannot(f"write {run.latest_config_path}"):
        if not run.latest_config_path.exists() or _read(run, run.latest_config_path).step != latest.step:
            _point_latest_at(run, latest.path, run.config_path(latest.step))
    prune(run, latest.train_config.keep_last)


def prune(run: Run, keep_last: int) -> None:
    """Remove all checkpoints but those of the `keep_last` highest steps and the one that `latest_*` names.

    Also removes files without a config, which a killed save or pruning left, and old best checkpoints. The caller holds
    `run.lock()`. A file that cannot be removed now (on Windows, because a reader has it open) is removed the next time.

    Raises UserError, having removed nothing, if the latest checkpoint does not load.
    """
    latest = {load(run).path.name, run.latest_weights_path.resolve().name}
    if run.latest_config_path.exists():
        latest.add(_read(run, run.latest_config_path).path.name)
    kept = run.steps()[-keep_last:]
    discarded = {
        f"{prefix}_step{step}": parts
        for (prefix, step), parts in run.parts().items()
        if f"{prefix}_step{step}{WEIGHTS}" not in latest
        and not (CONFIG in parts and step in kept)
        and not (parts == {WEIGHTS} and prefix != run.name)  # somebody else's file
    }
    # A step that has a config is whole, after a power cut too. So the configs go first.
    for stem in discarded:
        remove(run.path / f"{stem}{CONFIG}")
    if discarded:
        sync_directory(run.path)
    for stem, parts in discarded.items():
        if not (run.path / f"{stem}{CONFIG}").exists():
            for part in (WEIGHTS, OPTIMIZER):
                if part in parts:
                    remove(run.path / f"{stem}{part}")
    if (kept_best := best(run)) is not None:
        _forget_other_best(run, kept_best.path)


def forget_best(run: Run) -> None:
    """Remove the best checkpoint, if there is one: its links first, so that no link is ever broken."""
    for path in (run.best_config_path, run.best_weights_path, *_best_files(run)):
        path.unlink(missing_ok=True)


def _forget_other_best(run: Run, weights_path: Path) -> None:
    """Remove the files of all best checkpoints but the one with these weights."""
    for path in _best_files(run):
        if path not in (weights_path, weights_path.with_name(weights_path.stem + CONFIG)):
            remove(path)


def _best_files(run: Run) -> list[Path]:
    return [
        run.path / f"{prefix}_step{step}{part}"
        for (prefix, step), parts in run.parts(best=True).items()
        for part in sorted(parts, reverse=True)  # the config first: "_" comes after "."
    ]


def _point_latest_at(run: Run, weights_path: Path, config_path: Path) -> None:
    link_atomically(run.latest_weights_path, weights_path.name, copied=False)
    link_atomically(run.latest_config_path, config_path.name)


def _config(
    run: Run, step: int, model_config: ModelConfig, train_config: TrainConfig, weights_path: Path, **more: float
) -> str:
    """The text of a config file, with `more` keys in its section "checkpoint"."""
    sections = {
        "model": model_config.to_json(),
        "tokenizer": {"path": run.tokenizer_path.name, "tokens_path": run.tokens_path.name},
        "training": {**train_config.to_json(), "steps": step},
        "checkpoint": {"latest": weights_path.name, "step": step, **more},
    }
    return json.dumps(sections, indent=2) + "\n"


# ---- reading -------------------------------------------------------------------------------------------------------


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
        raise UserError("--best and --step exclude each other: the best checkpoint is of the step that was best")
    return _settled(run, lambda: _load(run, step, best))


def best(run: Run) -> Checkpoint | None:
    """The best checkpoint so far; None if there is none that loads."""
    with suppress(UserError):
        found = _settled(run, lambda: _read(run, run.best_config_path))
        return found if found.val_loss is not None else None
    return None


def find(path: str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint that a weights file, a config file or a `latest_*` link belongs to, in any directory.

    Its `run` is the directory that the file lies in. Raises UserError as `load` does.

    Example:
        find("checkpoints/r/latest_checkpoint.safetensors") and find("checkpoints/r/r_step8_config.json")
    """
    path = Path(path)
    named = Run.at(path.parent.resolve())
    if path.name == named.latest_weights_path.name and not path.exists() and named.latest_config_path.exists():
        path = named.latest_config_path  # on a file system without links
    path = path.resolve()
    run = Run.at(path.parent)
    if not path.is_file():
        raise UserError(f"--ckpt {path} is not a file: name a checkpoint's weights, its config or a latest_* link")
    if path.suffix == ".json":
        return _read(run, path)
    links = {run.latest_weights_path: run.latest_config_path, run.best_weights_path: run.best_config_path}
    if path in links:  # a plain file: the run was copied by a program that follows links
        return _read(run, links[path])
    return _read(run, path.with_name(f"{path.stem}{CONFIG}"), path)


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


def _read(run: Run, config_path: Path, weights_path: Path | None = None) -> Checkpoint:
    """The checkpoint with this config file. Its weights are in `weights_path`, or else in the file that it names."""
    try:
        config = read_json(config_path, _CONFIG, "a checkpoint's config", _ADVICE)
    except FileNotFoundError:
        raise UserError(f"{config_path} is missing: {_ADVICE}") from None
    try:
        model_config, train_config = ModelConfig.from_json(config["model"]), TrainConfig.from_json(config["training"])
        # Only the name counts: the file lies beside its config, wherever the directory has been moved.
        named = config_path.with_name(Path(config["checkpoint"]["latest"]).name)
    except (ValueError, UserError) as error:
        raise UserError(f"{config_path} is not a checkpoint's config: {_reason(error)}: {_ADVICE}") from error
    path, described = weights_path or named, config["checkpoint"]
    return Checkpoint(
        run, described["step"], model_config, train_config, path, described.get("val_loss"),
        described.get("imported", False), _opened(path, _trained_layout(model_config, train_config)),
    )  # fmt: skip


def _opened(path: Path, layout: Layout) -> TensorFile:
    return open_tensors(path, layout, layout, _ADVICE)


# ---- sizes and messages --------------------------------------------------------------------------------------------


def file_bytes(model_config: ModelConfig, train_config: TrainConfig) -> tuple[int, int]:
    """Bytes of the tensors in a checkpoint's two large files: the weights, and the optimizer's state."""
    weights, optimizer = (make(model_config, train_config) for make in (_trained_layout, _optimizer_layout))
    return _tensor_bytes(weights), _tensor_bytes(optimizer)


def base_bytes(model_config: ModelConfig, train_config: TrainConfig) -> int:
    """Bytes of the tensors that a run writes before its first step: the base of its adapters."""
    return _tensor_bytes(_layout_of(parameter_shapes(model_config))) if train_config.lora else 0


def largest_tensor(model_config: ModelConfig) -> int:
    """Bytes of the largest tensor in a checkpoint. Loading and exporting hold one tensor at a time in memory."""
    return 4 * max(map(math.prod, parameter_shapes(model_config).values()))


def _trained_layout(model_config: ModelConfig, train_config: TrainConfig) -> Layout:
    return _layout_of(trained_shapes(model_config, train_config.lora))


def _optimizer_layout(model_config: ModelConfig, train_config: TrainConfig) -> Layout:
    tensors = _layout_of(optimizer_shapes(model_config, train_config.optimizer, train_config.lora))
    return tensors | dict.fromkeys(COUNTERS, ("I64", ()))


def _layout_of(shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    return {name: ("F32", shape) for name, shape in shapes.items()}


def _tensor_bytes(layout: Layout) -> int:
    return sum(DTYPES[dtype].itemsize * math.prod(shape) for dtype, shape in layout.values())


@contextmanager
def _cannot(action: str) -> Iterator[None]:
    """Turn any OSError inside the `with` into a UserError. (`errors.cannot` lets a missing file through.)"""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot {action}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The cause of an error, in one line."""
    return shown(" ".join((getattr(error, "strerror", None) or str(error)).split()), quoted=False)
