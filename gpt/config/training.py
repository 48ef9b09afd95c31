"""The settings of a training, and those of them that are computed if nobody gives them."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from gpt.config.fields import check, check_choice, check_types, pick
from gpt.errors import UserError

LEARNING_RATES = {"adamw": 3e-4, "muon": 3e-3}  # peak rate of each optimizer, unless a flag or a preset gives one
WARMUPS = {"adamw": 50, "muon": 10}  # divisor: the warmup is every 50th step of a schedule, or every 10th
LONGEST_WARMUP = 2000  # steps
COMPUTED = ("precision", "learning_rate", "warmup_steps", "min_lr")  # settings that are computed if they are not given


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
        check_types(self)
        for key in ("batch_size", "accumulate", "total_steps", "log_every", "keep_last"):
            check(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        check_choice(self, "optimizer", "precision", "reduce_precision", "schedule", "sampling")
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
