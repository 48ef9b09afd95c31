"""What a model and a run are: checked dataclasses, to and from the sections of a config JSON file.

The keys are HipGPT's own (`embed_dim`, `num_heads`, …), so that its readers find them; the command line's
shorter flags (`--dim`, `--heads`, …) are in `FLAGS`. Defaults stand here and nowhere else.
"""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from gpt.errors import UserError

ACTIVATIONS = ("gelu", "relu")
OPTIMIZERS = ("adamw", "muon")
LEARNING_RATES = {"adamw": 3e-4, "muon": 3e-3}  # of each optimizer, if nothing says otherwise
WARMUPS = {"adamw": 50, "muon": 10}  # that part of all steps is the warmup: every 50th, every 10th
SCHEDULES = ("cosine", "trapezoid", "constant")
SAMPLINGS = ("shuffled", "sequential", "random")
PRECISIONS = ("auto", "fp32", "tf32", "bf16")
TOKENIZERS = ("word", "byte")
COMPUTED = ("precision", "learning_rate", "warmup_steps", "min_lr")  # settings with a value if none is given

DATA_PATH = "data/data.txt"
RUNS_DIR, RUNS_DIR_VARIABLE = "checkpoints", "HIPGPT_RUNS_DIR"
VOCAB_LIMIT = 5000
LAYER_LIMIT = 10_000  # so that a wrong number is not taken for a model whose tensors would have to be listed first

FLAGS = {
    "max_seq_len": "--seq",
    "embed_dim": "--dim",
    "num_heads": "--heads",
    "ff_hidden_dim": "--ff",
    "num_layers": "--layers",
    "tie_embeddings": "--no-tie",
    "batch_size": "--batch",
    "total_steps": "--steps",
    "learning_rate": "--lr",
}


def flag(key: str) -> str:
    """The command-line flag that sets `key`: `embed_dim` → `--dim`, `grad_clip` → `--grad-clip`."""
    return FLAGS.get(key, "--" + key.replace("_", "-"))


def _check(ok: bool, key: str, value: object, wanted: str) -> None:
    if not ok:
        raise UserError(f"{flag(key)} is {value}, but must be {wanted}")


def _check_types(config: Any) -> None:
    """Flags arrive converted, but a config file can hold anything."""
    for field in fields(config):
        value = getattr(config, field.name)
        _check(type(value) is not int or value < 2**31 or field.name == "seed", field.name, value, "below 2147483648")
        fits = isinstance(value, field.type) or (type(value) is int and isinstance(float(value), field.type))
        _check(fits and (type(value) is bool) == (field.type is bool), field.name, repr(value), f"of type {field.type}")


def _known(cls: type, section: dict[str, Any]) -> dict[str, Any]:
    return {field.name: section[field.name] for field in fields(cls) if field.name in section}


@dataclass(frozen=True)
class ModelConfig:
    """A GPT-2: pre-LN blocks, learned positions, biases everywhere (Radford et al. 2019).

    Raises UserError where a value cannot make a model.
    """

    vocab_size: int
    max_seq_len: int = 256
    embed_dim: int = 256
    num_heads: int = 8
    ff_hidden_dim: int = 1024
    num_layers: int = 8
    activation: str = "gelu"
    tie_embeddings: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_types(self)
        for key in ("vocab_size", "max_seq_len", "embed_dim", "num_heads", "ff_hidden_dim", "num_layers"):
            _check(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        _check(self.num_layers <= LAYER_LIMIT, "num_layers", self.num_layers, f"at most {LAYER_LIMIT}")
        if self.embed_dim % self.num_heads:
            raise UserError(f"--dim {self.embed_dim} is not a multiple of --heads {self.num_heads}")
        _check(self.activation in ACTIVATIONS, "activation", self.activation, f"one of {', '.join(ACTIVATIONS)}")
        _check(0 <= self.dropout < 1, "dropout", self.dropout, "at least 0 and below 1")

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @classmethod
    def from_json(cls, section: dict[str, Any]) -> "ModelConfig":
        return cls(**_known(cls, section))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. Values of None, and a precision of "auto", are computed: from the optimizer, the steps
    and the learning rate, or from the device. `computed` names them, so that `changed` can compute them again.

    The last fields have no option, for they follow from where a run began. Steps up to `schedule_start` are not part
    of the learning rate's schedule, and steps up to `text_start` read another text. No step has trained on the last
    `unseen_fraction` of the text.
    Raises UserError for a value that cannot train.
    """

    batch_size: int = 32
    accumulate: int = 1
    precision: str = "auto"
    total_steps: int = 50_000
    optimizer: str = "adamw"
    learning_rate: float | None = None
    min_lr: float | None = None
    warmup_steps: int | None = None
    schedule: str = "cosine"
    decay_fraction: float = 0.4
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    seed: int = 0
    sampling: str = "shuffled"
    val_fraction: float = 0.05
    log_every: int = 50
    eval_every: int = 500
    ckpt_every: int = 1000
    keep_last: int = 5
    patience: int = 0
    sample_every: int = 0
    sample_prompt: str | None = None
    schedule_start: int = 0
    text_start: int = 0
    unseen_fraction: float | None = None
    computed: tuple = ()

    def __post_init__(self) -> None:
        _check_types(self)
        for key in ("batch_size", "accumulate", "total_steps", "log_every", "keep_last"):
            _check(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        _check(self.optimizer in OPTIMIZERS, "optimizer", self.optimizer, f"one of {', '.join(OPTIMIZERS)}")
        for key in ("schedule_start", "text_start"):
            _check(0 <= getattr(self, key) <= self.total_steps, key, getattr(self, key), "from 0 to --steps")
        computed = (key for key in COMPUTED if key in self.computed or getattr(self, key) in (None, "auto"))
        object.__setattr__(self, "computed", tuple(computed))
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", LEARNING_RATES[self.optimizer])
        lr = self.learning_rate
        _check(0 < lr < 1e38, "learning_rate", lr, "a number above 0 (and below 1e38)")
        if self.warmup_steps is None:
            object.__setattr__(self, "warmup_steps", self._usual_warmup())
        if self.min_lr is None:
            object.__setattr__(self, "min_lr", lr / 10)
        if self.unseen_fraction is None:
            object.__setattr__(self, "unseen_fraction", self.val_fraction)
        for key in ("eval_every", "ckpt_every", "warmup_steps", "seed", "patience", "sample_every"):
            _check(getattr(self, key) >= 0, key, getattr(self, key), "at least 0")
        _check(0 <= self.min_lr <= lr, "min_lr", self.min_lr, f"between 0 and --lr {lr}")
        for key in ("weight_decay", "grad_clip"):
            value = getattr(self, key)
            _check(math.isfinite(value) and value >= 0, key, value, "at least 0")
        for key in ("val_fraction", "unseen_fraction"):
            _check(0 <= getattr(self, key) < 1, key, getattr(self, key), "at least 0 and below 1")
        if self.patience and not (self.eval_every and self.val_fraction):
            raise UserError(
                f"--patience is {self.patience}, but nothing is evaluated: give --eval-every and --val-fraction above 0"
            )
        _check(self.precision in PRECISIONS, "precision", self.precision, f"one of {', '.join(PRECISIONS)}")
        _check(0 <= self.decay_fraction <= 1, "decay_fraction", self.decay_fraction, "between 0 and 1")
        _check(self.schedule in SCHEDULES, "schedule", self.schedule, f"one of {', '.join(SCHEDULES)}")
        _check(self.sampling in SAMPLINGS, "sampling", self.sampling, f"one of {', '.join(SAMPLINGS)}")

    def changed(self, **given: Any) -> "TrainConfig":
        """This training with other values given. Computed values that depend on them are computed again.

        The smallest rate depends on the peak. The warmup depends on where its schedule starts, but not on how long that
        lasts: steps of it have been taken. The precision depends on the device, which may be another one every time.
        For example a run with a rate of 1e-3 and a computed smallest one of 1e-4 has one of 1e-6 after
        changed(learning_rate=1e-5), but a given smallest rate stays what it is.
        """
        again = {"precision"}
        again |= {"min_lr"} if given.get("learning_rate", self.learning_rate) != self.learning_rate else set()
        again |= {"warmup_steps"} if given.get("schedule_start", self.schedule_start) != self.schedule_start else set()
        again = again.intersection(self.computed).difference(given)
        kept = tuple(key for key in self.computed if key not in given and key not in again)
        unset = {key: "auto" if key == "precision" else None for key in again}
        return replace(self, **unset, **given, computed=kept)

    def computing_in(self, precision: str) -> "TrainConfig":
        """This training with its precision computed, if none was given: the device's own."""
        return replace(self, precision=precision) if "precision" in self.computed else self

    def _usual_warmup(self) -> int:
        return min(2000, (self.total_steps - self.schedule_start) // WARMUPS[self.optimizer])

    @classmethod
    def from_json(cls, section: dict[str, Any]) -> "TrainConfig":
        # A config without `sampling` was written when every run read its text in order.
        known = {"sampling": "sequential", **_known(cls, section)}
        if isinstance(known.get("computed"), list):
            known["computed"] = tuple(key for key in COMPUTED if key in known["computed"])
        config = cls(**known)
        if "computed" in known:
            return config
        # Written before configs said what was computed. A value that is as computed was hardly ever given.
        usual = {
            "learning_rate": LEARNING_RATES[config.optimizer],
            "warmup_steps": config._usual_warmup(),
            "min_lr": config.learning_rate / 10,
        }
        like = (key for key, value in usual.items() if math.isclose(getattr(config, key), value))
        return replace(config, computed=(*config.computed, *like))

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "computed": list(self.computed)}


# What was measured to learn fastest: docs/recipes.md says how, and what did not help.
_MUON = {"tokenizer": "byte", "optimizer": "muon", "schedule": "trapezoid", "min_lr": 0.0}
_GPT2 = {**_MUON, "vocab_size": 50_257, "max_seq_len": 1024, "learning_rate": 3e-3}
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        **_MUON,
        "vocab_size": 2000,
        "max_seq_len": 64,
        "embed_dim": 128,
        "num_heads": 4,
        "ff_hidden_dim": 512,
        "num_layers": 2,
        "batch_size": 16,
        "total_steps": 400,
        "learning_rate": 1.6e-2,
        "decay_fraction": 0.5,
        "eval_every": 100,
        "sample_every": 100,
    },
    "small": {
        **_MUON,
        "vocab_size": 2000,
        "max_seq_len": 128,
        "embed_dim": 128,
        "num_heads": 4,
        "ff_hidden_dim": 512,
        "num_layers": 4,
        "batch_size": 16,
        "total_steps": 2000,
        "learning_rate": 6e-3,
        "sample_every": 500,
    },
    "baby": {
        **_MUON,
        "vocab_size": 257,
        "max_seq_len": 256,
        "embed_dim": 384,
        "num_heads": 6,
        "ff_hidden_dim": 1536,
        "num_layers": 6,
        "dropout": 0.2,
        "batch_size": 64,
        "total_steps": 1500,
        "learning_rate": 4e-3,
        "sample_every": 500,
    },
    "medium": {**_MUON, "vocab_size": 16_384, "total_steps": 5000, "learning_rate": 4e-3},
    "gpt2-124M": {
        **_GPT2,
        "embed_dim": 768,
        "num_heads": 12,
        "ff_hidden_dim": 3072,
        "num_layers": 12,
        "batch_size": 32,
    },
    "gpt2-350M": {
        **_GPT2,
        "embed_dim": 1024,
        "num_heads": 16,
        "ff_hidden_dim": 4096,
        "num_layers": 24,
        "batch_size": 16,
    },
}
# Of a preset, which are its optimizer's and no other's.
RATES = ("learning_rate", "min_lr", "schedule", "decay_fraction")
