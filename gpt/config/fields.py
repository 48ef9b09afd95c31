"""The fields of the settings: which values they may have, and which flags of the command line set them."""

from collections.abc import Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from gpt.errors import UserError

ACTIVATIONS = ("gelu", "relu")
OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "trapezoid", "constant")
SAMPLINGS = ("shuffled", "sequential", "random")
PRECISIONS = ("auto", "fp32", "tf32", "bf16")
TOKENIZERS = ("word", "byte", "char")
SPLITS = ("gpt2", "gpt4", "llama3", "qwen2", "gpt4o")
CHOICES = {  # the values that a setting may have, if they have names
    "activation": ACTIVATIONS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "sampling": SAMPLINGS,
    "precision": PRECISIONS,
    "reduce_precision": ("fp32", "bf16"),
    "split": SPLITS,
}

# Fields without an option: they follow from the tokenizer, the step at which a run began, or the device.
NOT_CHOSEN = {"vocab_size", "schedule_start", "text_start", "unseen_fraction", "base", "computed", "device"}

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


def check_choice(config: Any, *keys: str) -> None:
    """Raise UserError if one of these fields has a value that is not among its `CHOICES`."""
    for key in keys:
        check(getattr(config, key) in CHOICES[key], key, getattr(config, key), f"one of {', '.join(CHOICES[key])}")


def check_types(config: Any) -> None:
    """Refuse values of a wrong type: flags arrive converted, but a config file can hold anything."""
    for key, types in types_of(type(config)).items():
        value = getattr(config, key)
        check(type(value) is not int or value < 2**31 or key == "seed", key, value, "below 2147483648")
        fits = isinstance(value, types) or (isinstance(value, int) and float in types)
        named = " or ".join("null" if each is NoneType else each.__name__ for each in types)
        check(fits and isinstance(value, bool) == (bool in types), key, repr(value), f"of type {named}")
