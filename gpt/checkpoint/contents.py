"""What the files of a checkpoint contain: tensors with their names, dtypes and shapes, and the config."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gpt.config import ModelConfig, TrainConfig
from gpt.errors import UserError
from gpt.lora import Merged, trained_shapes
from gpt.optim import COUNTERS, optimizer_shapes
from gpt.parameters import parameter_shapes
from gpt.run import OPTIMIZER, Run
from gpt.system.reading import COUNT, NUMBER, PATH, TRUTH, Schema, optional, schema_of
from gpt.system.tensors import DTYPES, Layout, TensorFile, open_tensors

CONFIG_SCHEMA: Schema = {
    "model": schema_of(ModelConfig),
    "training": schema_of(TrainConfig),
    "checkpoint": {
        "latest": PATH,
        "step": COUNT,
        "val_loss": optional(NUMBER),
        "imported": optional(TRUTH),
        "source": optional(PATH),
    },
}
ADVICE = "restore it, or name another checkpoint"
_MOST_STEPS = 2**53  # limit for a counter, because float64 holds larger integers inexactly


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
    source: str | None = None  # the directory that they were imported from
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
        return self._trained or opened(self.path, trained_layout(self.model_config, self.train_config))

    def base(self) -> Mapping[str, np.ndarray]:
        """The weights that the adapters were trained beside. As `weights` otherwise."""
        return opened(self.run.base_path, _layout_of(parameter_shapes(self.model_config)))

    def optimizer(self) -> tuple[Mapping[str, np.ndarray], dict[str, int]]:
        """The optimizer's float32 tensors, named as in `optimizer_shapes`, and its counters, named as in `COUNTERS`.

        Only resuming needs this file; a best checkpoint has none. Raises UserError as `weights` does.
        """
        path = self.path.with_name(f"{self.path.stem}{OPTIMIZER}")
        names = optimizer_shapes(self.model_config, self.train_config.optimizer, self.train_config.lora)
        tensors = open_tensors(path, _optimizer_layout(self.model_config, self.train_config), names, ADVICE)
        counters = {name: int(tensors[name]) for name in COUNTERS}
        for name, count in counters.items():
            if not 0 <= count <= _MOST_STEPS:
                raise UserError(f"{path} is damaged: {name} is {count}, but must be from 0 to {_MOST_STEPS}: {ADVICE}")
        return tensors, counters


def opened(path: Path, layout: Layout) -> TensorFile:
    """The tensors of a file, which has exactly those of `layout`. Raises UserError, which names the file, if not."""
    return open_tensors(path, layout, layout, ADVICE)


def config_text(
    run: Run, step: int, model_config: ModelConfig, train_config: TrainConfig, weights_path: Path, **more: float | str
) -> str:
    """The text of a config file, with `more` keys in its section "checkpoint"."""
    sections = {
        "model": model_config.to_json(),
        "tokenizer": {"path": run.tokenizer_path.name, "tokens_path": run.tokens_path.name},
        "training": {**train_config.to_json(), "steps": step},
        "checkpoint": {"latest": weights_path.name, "step": step, **more},
    }
    return json.dumps(sections, indent=2) + "\n"


# ---- layouts and sizes -----------------------------------------------------------------------------------------------


def trained_layout(model_config: ModelConfig, train_config: TrainConfig) -> Layout:
    """Name → dtype and shape of every tensor in a checkpoint's weights file."""
    return _layout_of(trained_shapes(model_config, train_config.lora))


def _optimizer_layout(model_config: ModelConfig, train_config: TrainConfig) -> Layout:
    tensors = _layout_of(optimizer_shapes(model_config, train_config.optimizer, train_config.lora))
    return tensors | dict.fromkeys(COUNTERS, ("I64", ()))


def _layout_of(shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    return {name: ("F32", shape) for name, shape in shapes.items()}


def file_bytes(model_config: ModelConfig, train_config: TrainConfig) -> tuple[int, int]:
    """Bytes of the tensors in a checkpoint's two large files: the weights, and the optimizer's state."""
    weights, optimizer = (make(model_config, train_config) for make in (trained_layout, _optimizer_layout))
    return _tensor_bytes(weights), _tensor_bytes(optimizer)


def base_bytes(model_config: ModelConfig, train_config: TrainConfig) -> int:
    """Bytes of the tensors that a run writes before its first step: the base of its adapters."""
    return _tensor_bytes(_layout_of(parameter_shapes(model_config))) if train_config.lora else 0


def largest_tensor(model_config: ModelConfig) -> int:
    """Bytes of the largest tensor in a checkpoint. Loading and exporting hold one tensor at a time in memory."""
    return 4 * max(map(math.prod, parameter_shapes(model_config).values()))


def _tensor_bytes(layout: Layout) -> int:
    return sum(DTYPES[dtype].itemsize * math.prod(shape) for dtype, shape in layout.values())
