"""The settings of a model, of its training, of a tokenizer and of sampling: checked dataclasses with every default.

Defaults stand here and nowhere else; the command line shows them in its help. The keys of a config JSON file are
HipGPT's own (`embed_dim`, `num_heads`, …), so that programs that read HipGPT's files find them. The command line's
flags are shorter (`--dim`, `--heads`, …): see `FLAGS`.
"""

import codecs
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from gpt.errors import UserError

ACTIVATIONS = ("gelu", "relu")
OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "trapezoid", "constant")
SAMPLINGS = ("shuffled", "sequential", "random")
PRECISIONS = ("auto", "fp32", "tf32", "bf16")
TOKENIZERS = ("word", "byte", "char")
SPLITS = ("gpt2", "gpt4", "llama3", "qwen2")
CHOICES = {  # the values that a setting may have, if they have names
    "activation": ACTIVATIONS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "sampling": SAMPLINGS,
    "precision": PRECISIONS,
    "reduce_precision": ("fp32", "bf16"),
    "split": SPLITS,
}

LEARNING_RATES = {"adamw": 3e-4, "muon": 3e-3}  # peak rate of each optimizer, unless a flag or a preset gives one
WARMUPS = {"adamw": 50, "muon": 10}  # divisor: the warmup is every 50th step of a schedule, or every 10th
LONGEST_WARMUP = 2000  # steps
COMPUTED = ("precision", "learning_rate", "warmup_steps", "min_lr")  # settings that are computed if they are not given

# Fields without an option: they follow from the tokenizer, the step at which a run began, or the device.
NOT_CHOSEN = {"vocab_size", "schedule_start", "text_start", "unseen_fraction", "base", "computed", "device"}

DATA_PATH = "data/data.txt"
RUNS_DIR, RUNS_DIR_VARIABLE = "checkpoints", "HIPGPT_RUNS_DIR"
NUM_TOKENS = 100  # tokens that generation adds
NO_EOS = -1  # the --eos-id that no token has: generation never stops early
LAYER_LIMIT = 10_000  # layers: refuse a mistyped number before a list of its tensors fills the memory

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
    "kind": "--tokenizer",
    "vocab_limit": "--vocab-size",
    "special_tokens": "--special-token",
    "temperature": "--temp",
    "repetition_penalty": "--rep-penalty",
}


def flag(key: str) -> str:
    """The command-line flag that sets `key`: `embed_dim` → `--dim`, `grad_clip` → `--grad-clip`."""
    return FLAGS.get(key, "--" + key.replace("_", "-"))


def types_of(cls: type) -> dict[str, tuple[type, ...]]:
    """The types that each field of a dataclass may have: `min_lr: float | None` → (float, NoneType)."""
    hints = get_type_hints(cls)
    return {
        field.name: get_args(hint) if isinstance(hint := hints[field.name], UnionType) else (get_origin(hint) or hint,)
        for field in fields(cls)
    }


def pick(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that are fields of the dataclass `cls`."""
    return {field.name: values[field.name] for field in fields(cls) if field.name in values}


def check(ok: bool, key: str, value: object, wanted: str) -> None:
    """Raise UserError unless `ok`: "--heads is 0, but must be at least 1"."""
    if not ok:
        raise UserError(f"{flag(key)} is {value}, but must be {wanted}")


def _check_choice(config: Any, *keys: str) -> None:
    for key in keys:
        check(getattr(config, key) in CHOICES[key], key, getattr(config, key), f"one of {', '.join(CHOICES[key])}")


def _check_types(config: Any) -> None:
    """Refuse values of a wrong type: flags arrive converted, but a config file can hold anything."""
    for key, types in types_of(type(config)).items():
        value = getattr(config, key)
        check(type(value) is not int or value < 2**31 or key == "seed", key, value, "below 2147483648")
        fits = isinstance(value, types) or (isinstance(value, int) and float in types)
        named = " or ".join("null" if each is NoneType else each.__name__ for each in types)
        check(fits and isinstance(value, bool) == (bool in types), key, repr(value), f"of type {named}")


@dataclass(frozen=True)
class DataConfig:
    """The text that the user's flags name, and how it is to be read, or the tokens that another program has made.

    `sample` is how many bytes of the text a tokenizer learns from. None stands for a flag that was left out. Raises
    UserError for an encoding that Python does not know, and for a sample of nothing.
    """

    data_path: tuple[str, ...] = ()
    encoding: str | None = None
    text_field: str | None = None
    val_path: tuple[str, ...] = ()
    shuffle_documents: int | None = None
    tokens: tuple[str, ...] = ()
    val_tokens: tuple[str, ...] = ()
    sample: int | None = None

    def __post_init__(self) -> None:
        check(self.sample is None or self.sample >= 1, "sample", self.sample, "at least 1")
        if self.encoding is not None:
            try:
                "".encode(self.encoding)  # LookupError for a codec of something else than text, too
                object.__setattr__(self, "encoding", codecs.lookup(self.encoding).name)
            except (LookupError, UnicodeError):
                check(False, "encoding", self.encoding, "that of a text, such as latin-1, cp1252 or gb18030")


@dataclass(frozen=True)
class ModelConfig:
    """A GPT-2: pre-LN blocks, learned positions, biases everywhere (Radford et al. 2019).

    Raises UserError for a value that cannot make a model.
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
            check(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        check(self.num_layers <= LAYER_LIMIT, "num_layers", self.num_layers, f"at most {LAYER_LIMIT}")
        if self.embed_dim % self.num_heads:
            raise UserError(f"--dim {self.embed_dim} is not a multiple of --heads {self.num_heads}")
        _check_choice(self, "activation")
        check(0 <= self.dropout < 1, "dropout", self.dropout, "at least 0 and below 1")

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    def check_tokenizer(self, tokenizer: str | Path, vocab_size: int) -> None:
        """Raise UserError if a tokenizer of `vocab_size` tokens, named `tokenizer`, cannot be this model's."""
        if vocab_size != self.vocab_size:
            raise UserError(
                f"{tokenizer} has {vocab_size} tokens, but the model {self.vocab_size}: "
                "put back the tokenizer that the model was trained with"
            )

    @classmethod
    def from_json(cls, section: Mapping[str, Any]) -> "ModelConfig":
        return cls(**pick(cls, section))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training.

    `learning_rate`, `min_lr` and `warmup_steps` are None, and `precision` is "auto", if nobody gave them. They are then
    computed: from the optimizer, the steps and the learning rate, or from the device. The properties `peak_lr`,
    `final_lr` and `warmup` have the numbers in either case. `resolved` writes computed values down, as a config file
    has them, and names them in `computed`, so that `changed` can compute them again.

    `lora` is the rank of the adapters that learn in place of the weights; None: the weights learn.

    `accumulate` counts the batches of a step on all ranks together, so a checkpoint does not depend on their number.

    The last fields have no option, because they follow from the step at which a run began. Steps up to
    `schedule_start` are not part of the learning rate's schedule, and steps up to `text_start` read another text. No
    step has trained on the last `unseen_fraction` of the text (None: the last `val_fraction`). `base` names the model
    that adapters are trained beside, and `device` what it is trained on (None: that is not known).
    Raises UserError for a value that cannot train.
    """

    batch_size: int = 32
    accumulate: int = 1
    recompute: bool = False
    precision: str = "auto"
    reduce_precision: str = "fp32"
    total_steps: int = 50_000
    optimizer: str = "adamw"
    lora: int | None = None
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
    base: str | None = None
    computed: tuple[str, ...] = ()
    device: str | None = None

    def __post_init__(self) -> None:
        _check_types(self)
        for key in ("batch_size", "accumulate", "total_steps", "log_every", "keep_last"):
            check(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        _check_choice(self, "optimizer", "precision", "reduce_precision", "schedule", "sampling")
        check(self.lora is None or self.lora >= 1, "lora", self.lora, "at least 1")
        if self.lora and self.optimizer != "adamw":
            raise UserError(
                f"--optimizer {self.optimizer} moves whole matrices, but --lora {self.lora} trains adapters, which "
                "adamw moves: leave one of them out"
            )
        for key in ("schedule_start", "text_start"):
            check(0 <= getattr(self, key) <= self.total_steps, key, getattr(self, key), "from 0 to --steps")
        check(0 < self.peak_lr < 1e38, "learning_rate", self.peak_lr, "a number above 0 (and below 1e38)")
        check(self.warmup >= 0, "warmup_steps", self.warmup, "at least 0")
        for key in ("eval_every", "ckpt_every", "seed", "patience", "sample_every"):
            check(getattr(self, key) >= 0, key, getattr(self, key), "at least 0")
        check(0 <= self.final_lr <= self.peak_lr, "min_lr", self.final_lr, f"between 0 and --lr {self.peak_lr}")
        for key in ("weight_decay", "grad_clip"):
            value = getattr(self, key)
            check(math.isfinite(value) and value >= 0, key, value, "at least 0")
        check(0 <= self.val_fraction < 1, "val_fraction", self.val_fraction, "at least 0 and below 1")
        check(0 <= self.unseen < 1, "unseen_fraction", self.unseen, "at least 0 and below 1")
        if self.patience and not (self.eval_every and self.val_fraction):
            raise UserError(
                f"--patience is {self.patience}, but nothing is evaluated: give --eval-every and --val-fraction above 0"
            )
        check(0 <= self.decay_fraction <= 1, "decay_fraction", self.decay_fraction, "between 0 and 1")

    @property
    def peak_lr(self) -> float:
        """The highest learning rate: `learning_rate`, or else the optimizer's usual one."""
        return LEARNING_RATES[self.optimizer] if self.learning_rate is None else self.learning_rate

    @property
    def final_lr(self) -> float:
        """The learning rate at the last step: `min_lr`, or else a tenth of the peak."""
        return self.peak_lr / 10 if self.min_lr is None else self.min_lr

    @property
    def warmup(self) -> int:
        """The steps of the warmup: `warmup_steps`, or else a fixed share of the schedule's steps."""
        return self._usual_warmup() if self.warmup_steps is None else self.warmup_steps

    @property
    def unseen(self) -> float:
        """The share of the text, from its end, that no step has trained on."""
        return self.val_fraction if self.unseen_fraction is None else self.unseen_fraction

    def resolved(self) -> "TrainConfig":
        """This training with its computed values written down, and named in `computed`.

        For example TrainConfig(total_steps=100, learning_rate=1e-3).resolved() has a `min_lr` of 1e-4 and 2
        `warmup_steps`; `computed` is ("precision", "warmup_steps", "min_lr").
        """
        computed = tuple(key for key in COMPUTED if key in self.computed or getattr(self, key) in (None, "auto"))
        return replace(
            self, learning_rate=self.peak_lr, min_lr=self.final_lr, warmup_steps=self.warmup,
            unseen_fraction=self.unseen, computed=computed,
        )  # fmt: skip

    def changed(self, **given: Any) -> "TrainConfig":
        """A resolved training with other values given. Computed values that depend on them are computed again.

        The final rate depends on the peak. The warmup depends on the step at which its schedule starts, but not on the
        schedule's length, because some of its steps have been taken. The precision depends on the device, which may be
        another one every time. For example a run has a rate of 1e-3 and a computed final rate of 1e-4. After
        changed(learning_rate=1e-5) the final rate is 1e-6; if it was given, it stays 1e-4.
        """
        again = {"precision"}
        if given.get("learning_rate", self.learning_rate) != self.learning_rate:
            again.add("min_lr")
        if given.get("schedule_start", self.schedule_start) != self.schedule_start:
            again.add("warmup_steps")
        again = again.intersection(self.computed).difference(given)
        unset: dict[str, Any] = {key: "auto" if key == "precision" else None for key in again}
        kept = tuple(key for key in self.computed if key not in given and key not in again)
        return replace(self, **unset, **given, computed=kept).resolved()

    def computing_in(self, precision: str) -> "TrainConfig":
        """A resolved training with the device's own precision, unless one was given."""
        return replace(self, precision=precision) if "precision" in self.computed else self

    def _usual_warmup(self) -> int:
        return min(LONGEST_WARMUP, (self.total_steps - self.schedule_start) // WARMUPS[self.optimizer])

    @classmethod
    def from_json(cls, section: Mapping[str, Any]) -> "TrainConfig":
        """The resolved training that a config file's section describes; unknown keys are ignored."""
        # A config without `sampling` was written when every run read its text in order.
        known = {"sampling": "sequential", **pick(cls, section)}
        if isinstance(known.get("computed"), list):
            known["computed"] = tuple(key for key in COMPUTED if key in known["computed"])
        config = cls(**known)
        if "computed" not in known:
            # An old config does not list its computed values. A value that equals the computed one was hardly ever
            # given.
            usual = {
                "learning_rate": (config.peak_lr, LEARNING_RATES[config.optimizer]),
                "warmup_steps": (config.warmup, config._usual_warmup()),
                "min_lr": (config.final_lr, config.peak_lr / 10),
            }
            alike = tuple(key for key, values in usual.items() if math.isclose(*values))
            config = replace(config, computed=alike)
        return config.resolved()

    def to_json(self) -> dict[str, Any]:
        config = self.resolved()
        return {**asdict(config), "computed": list(config.computed)}


@dataclass(frozen=True)
class TokenizerConfig:
    """The kind of a tokenizer that learns, one of TOKENIZERS, the largest vocabulary that it may learn, and choices.

    `split` is the pattern that cuts a text into words for the kind `byte`, one of SPLITS (None: gpt2).
    `special_tokens` are tokens besides `<|endoftext|>` that are never split. `keep_newlines` gives line ends a token,
    for the kind `word`. `gpt.tokenizer.Tokenizer` checks the values.
    """

    kind: str = "word"
    vocab_limit: int = 5000
    split: str | None = None
    special_tokens: tuple[str, ...] = ()
    keep_newlines: bool = False

    def __post_init__(self) -> None:
        if self.split == "llama3":  # its pattern cuts every text as GPT-4's does
            object.__setattr__(self, "split", "gpt4")

    @classmethod
    def of(cls, preset: str | None) -> "TokenizerConfig":
        """The tokenizer of a preset (None: the default one)."""
        return cls(**pick(cls, PRESETS.get(preset or "", {})))

    def __str__(self) -> str:
        choices = [f" --split {self.split}"] if self.split else []
        choices += [f" --special-token {each}" for each in self.special_tokens]
        choices += [" --keep-newlines"] if self.keep_newlines else []
        return f"{self.kind} tokenizer of {self.vocab_limit:,} tokens{''.join(choices)}"


@dataclass(frozen=True)
class SamplingConfig:
    """How generation chooses the next token. Raises UserError for a value out of range.

    Four steps, in this order: `repetition_penalty` (1 = off; None: see `penalty`) makes tokens of the context less
    likely (Keskar et al. 2019). `temperature` sharpens (below 1) or flattens the distribution; 0 takes the likeliest
    token. `top_k` (0 = off) keeps the k likeliest tokens. `top_p` (1 = off) keeps the fewest tokens that together reach
    that probability (Holtzman et al. 2020).

    For example, probabilities of 0.5, 0.3 and 0.2 with a `top_p` of 0.7 leave the first two, at 0.625 and 0.375.
    """

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.9
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        check(0 <= self.temperature < math.inf, "temperature", self.temperature, "a number of at least 0")
        check(self.top_k >= 0, "top_k", self.top_k, "at least 0")
        check(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        check(0 < self.penalty < math.inf, "repetition_penalty", self.penalty, "a number above 0")

    @property
    def penalty(self) -> float:
        """The repetition penalty: the given one, or else 1.1, or 1 if `temperature` is 0."""
        if self.repetition_penalty is None:
            return 1.1 if self.temperature else 1.0
        return self.repetition_penalty


# Settings of `train --from` that differ from the defaults; docs/recipes.md has the sweep.
TUNING: dict[str, Any] = {
    "optimizer": "muon", "schedule": "trapezoid", "min_lr": 0.0, "total_steps": 500, "eval_every": 50,
}  # fmt: skip
TUNING_RATES = {"adamw": 1e-3, "muon": 3e-3}  # peak rate of each optimizer
LORA = {"optimizer": "adamw", "learning_rate": 3e-3}  # the same for `--lora`

# The fastest-learning settings that we measured. docs/recipes.md has the sweeps, and the settings that did not help.
_MUON = {"kind": "byte", "optimizer": "muon", "schedule": "trapezoid", "min_lr": 0.0}
_GPT2 = {**_MUON, "vocab_limit": 50_257, "max_seq_len": 1024, "learning_rate": 3e-3}
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        **_MUON,
        "vocab_limit": 2000,
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
        "vocab_limit": 2000,
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
        "vocab_limit": 257,
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
    "medium": {**_MUON, "vocab_limit": 16_384, "total_steps": 5000, "learning_rate": 4e-3},
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
# Settings of a preset that suit its optimizer alone: another --optimizer drops them.
RATES = ("learning_rate", "min_lr", "schedule", "decay_fraction")
