"""How the weights move: the learning-rate schedule, and AdamW with global-norm clipping over flat buffers."""

import math
from collections.abc import Mapping

import numpy as np

from gpt.config import TrainConfig
from gpt.model import GPT, Parameters
from gpt.ops import Array

BETAS = (0.9, 0.95)
EPS = 1e-8
COUNTERS = ("adam_step", "skipped", "skipped_in_a_row")


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of `step` (the first is 1): linear warmup, then a half cosine down to `min_lr`.

    With schedule "constant" it stays at `learning_rate` after the warmup. Source: Loshchilov & Hutter 2017, one cycle.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if step <= warmup:
        return peak * step / warmup
    if config.schedule == "constant":
        return peak
    progress = min(1.0, (step - warmup) / max(1, config.total_steps - warmup))
    return config.min_lr + (peak - config.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019) on a model's flat buffers.

    Decay applies to 2-D tensors; with a decay of 0 this is Adam. A step whose loss or gradient norm is not finite
    changes nothing but `counters`: Adam's own step does not advance either.
    """

    def __init__(self, model: GPT, config: TrainConfig) -> None:
        self.model, self.ops, self.config = model, model.ops, config
        self.exp_avg, self.exp_avg_sq = (
            Parameters(model.config, lambda size: self.ops.zeros(size, "float32"), self.ops.vocab_multiple)
            for _ in range(2)
        )
        self.norm = self.ops.zeros(1, "float64")
        self.counters = self.ops.zeros(len(COUNTERS), "int64")

    def load(
        self, exp_avg: Mapping[str, np.ndarray], exp_avg_sq: Mapping[str, np.ndarray], counters: Mapping[str, int]
    ) -> None:
        """Go on from a checkpoint's moments (float32, by parameter name) and counters."""
        for moment, tensors in ((self.exp_avg, exp_avg), (self.exp_avg_sq, exp_avg_sq)):
            for name, view in moment.named.items():
                self.ops.copy(tensors[name], out=view)
        self.ops.copy(np.array([counters[name] for name in COUNTERS], np.int64), out=self.counters)

    def step(self, lr: Array) -> None:
        """Clip the model's gradients to a global norm of `grad_clip` and move its weights. lr is float32 [1]."""
        weights, gradients, compute = self.model.weights, self.model.gradients, self.model.compute
        self.ops.global_norm(gradients.flat, out=self.norm)
        self.ops.adamw(
            weights.flat, gradients.flat, self.exp_avg.flat, self.exp_avg_sq.flat,
            copy=None if compute is weights else compute.flat, norm=self.norm, loss=self.model.metrics,
            counters=self.counters, lr=lr, betas=BETAS, eps=EPS, weight_decay=self.config.weight_decay,
            decayed=weights.decayed, clip=self.config.grad_clip,
        )  # fmt: skip

    def state(self) -> dict[str, int]:
        """The counters by name, read from the device."""
        return dict(zip(COUNTERS, self.ops.to_host(self.counters).tolist(), strict=True))


