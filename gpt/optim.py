"""How the weights move: the learning-rate schedule, gradient clipping, and two optimizers, AdamW and Muon.

AdamW scales every element of a gradient by the past sizes of that element. Muon looks at a weight matrix as a whole:
its step is the gradient's momentum with all singular values made about 1, so that rare directions move as far as
frequent ones. Muon moves the matrices of the blocks; AdamW moves embeddings, head, biases and layer norms.
"""

import math
from collections.abc import Mapping

import numpy as np

from gpt.config import ModelConfig, TrainConfig
from gpt.model import TrainableGPT
from gpt.ops.interface import AdamBuffers, Array, Stack, UpdateRule
from gpt.parameters import matrix_names, parameter_shapes

BETAS = {"adamw": (0.9, 0.95), "muon": (0.9, 0.99)}  # AdamW's, alone and beside Muon
EPS = 1e-8  # AdamW's
MOMENTUM = 0.9  # Muon's
PLAN = 6  # size of the plan, the numbers that the steps of all optimizers share: see Operations.plan_update
COUNTERS = ("adam_step", "skipped", "skipped_in_a_row")

# Newton-Schulz steps x (a + b x² + c x⁴) that bring singular values in [0.001, 1] to about 1. No other five polynomials
# of this form, applied in turn, have a smaller largest error (Polar Express, Amsel et al. 2025). Each but the last gets
# its argument divided by 1.01, because rounding to bf16 can leave a singular value slightly above the range.
_POLAR_EXPRESS = (
    (8.287212018145622, -23.59588651909882, 17.300387312530923),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
NEWTON_SCHULZ = (
    *((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in _POLAR_EXPRESS[:-1]),
    _POLAR_EXPRESS[-1],
)


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of `step` (the first is 1): a linear warmup to the peak, then one of three schedules.

    A schedule begins with the step after `schedule_start`, and ends with `total_steps`.

    - cosine: half a cosine down to the final rate at the last step (Loshchilov & Hutter 2017, one cycle).
    - trapezoid: constant, then linear to the final rate over the last `decay_fraction` of the schedule
      (warmup-stable-decay, Hu et al. 2024). Until the decay begins, the rate does not depend on the number of steps.
    - constant: no decay.

    Example: 100 steps, 10 of warmup, a peak of 1.0, a min_lr of 0 and a decay_fraction of 0.4. A trapezoid has 0.5 at
    step 5, 1.0 from step 10 to step 60, 0.5 at step 80 and 0 at step 100; a cosine has 0.5 at step 55. With a
    schedule_start of 200 and a total of 300 steps, a trapezoid has 0.5 at step 205 and 1.0 from step 210 to step 260.
    """
    peak, warmup, total = config.peak_lr, config.warmup, config.total_steps - config.schedule_start
    decay = decay_start(config)
    step -= config.schedule_start
    if warmup and step <= warmup:
        return peak * step / warmup
    if config.schedule == "constant" or step <= decay - config.schedule_start:
        return peak
    if config.schedule == "trapezoid":
        left = max(0, total - step) / max(1, config.total_steps - decay)
        return config.final_lr + (peak - config.final_lr) * left
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return config.final_lr + (peak - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def describe_rate(config: TrainConfig, first: int = 1, before: TrainConfig | None = None) -> str:
    """The learning rate from step `first` on, in one line.

    For example "0.008 from step 10 on, falling from step 60 on to 0 (trapezoid); AdamW". `before` is the training that
    the run had up to that step. If it would have gone on with another rate, the line begins with the rate up to then.
    """
    peak, total = config.peak_lr, config.total_steps
    warm, decay = config.schedule_start + config.warmup, decay_start(config)
    if first <= warm >= total:
        said = f"rising to {learning_rate(total, config):.3g} at step {total}, the last"
    elif first <= max(warm, decay) or first == 1:
        said = f"{peak:g} " + (f"from step {max(warm, first)} on" if warm or first > 1 else "at first")
        if decay < total:
            since = f"from step {decay} on " if config.schedule == "trapezoid" else ""
            said += f", falling {since}to {config.final_lr:g}"
    else:
        said = f"{learning_rate(first, config):.3g} at step {first}"
        said += f", falling to {config.final_lr:g}" if first < total else ""
    if before and learning_rate(first, config) not in (learning_rate(step, before) for step in (first - 1, first)):
        if config.schedule_start < first - 1 and first < warm:  # in a warmup whose length has changed
            said = f"{learning_rate(first, config):.3g} at step {first}, {said}"
        said = f"{learning_rate(first - 1, before):.3g} up to step {first - 1}, then {said}"
    by = {"adamw": "AdamW", "muon": "Muon for the blocks' matrices, AdamW for the rest"}[config.optimizer]
    return f"{said} ({config.schedule}); {by}"


def decay_start(config: TrainConfig) -> int:
    """The last step that has the full rate. A cosine decays from the end of the warmup on, a constant rate never."""
    steps, warmup = config.total_steps - config.schedule_start, config.warmup
    full = {"cosine": warmup, "constant": steps}.get(config.schedule, steps - math.ceil(config.decay_fraction * steps))
    return config.schedule_start + max(warmup, full)


def optimizer_shapes(model_config: ModelConfig, optimizer: str) -> dict[str, tuple[int, ...]]:
    """Name → shape of every float32 tensor that `optimizer`, "adamw" or "muon", keeps between steps.

    Adam keeps two moments of a tensor, exp_avg.NAME and exp_avg_sq.NAME. Muon keeps one of a matrix, momentum.NAME.
    """
    shapes = parameter_shapes(model_config)
    muon = set(matrix_names(model_config)) if optimizer == "muon" else set()
    kept = {f"momentum.{name}": shapes[name] for name in shapes if name in muon}
    for moment in ("exp_avg", "exp_avg_sq"):
        kept |= {f"{moment}.{name}": shape for name, shape in shapes.items() if name not in muon}
    return kept


class Optimizer:
    """Moves a model's weights by AdamW (Loshchilov & Hutter 2019), or by Muon (Jordan et al. 2024) and AdamW.

    `train_config.optimizer` says which. Gradients are first clipped to a global norm of `train_config.grad_clip` (0 is
    off). Decay applies to 2-D tensors. Muon's steps have the size of AdamW's (Liu et al. 2025), so that both use one
    learning rate and one weight decay. A step with a loss or a gradient norm that is not finite changes only
    `counters`.

    The flat buffer of the weights begins with the blocks' matrices. Muon has those, and AdamW has all elements from
    `_first` on. Without Muon, `_first` is 0.
    """

    def __init__(self, model: TrainableGPT, train_config: TrainConfig) -> None:
        self.model, self.ops, self.train_config = model, model.ops, train_config
        weights, ops = model.weights, model.ops
        self._first = weights.matrices if train_config.optimizer == "muon" else 0
        self._exp_avg, self._exp_avg_sq = (ops.zeros(weights.flat.size - self._first, "float32") for _ in range(2))
        self._momentum = ops.zeros(self._first, "float32")
        self.norm = ops.zeros(1, "float64")
        self.counters = ops.zeros(len(COUNTERS), "int64")
        self._plan = ops.zeros(PLAN, "float64")
        self.coefficients = NEWTON_SCHULZ
        # The gradients, and the copy of the weights that products read, as the two optimizers take them.
        gradients, first = model.gradients, self._first
        compute = None if model.compute is weights else model.compute
        betas = BETAS[train_config.optimizer]
        self._rule = UpdateRule(betas, EPS, train_config.weight_decay, train_config.grad_clip)
        self._buffers = AdamBuffers(
            weights.flat[first:],
            gradients.flat[first:],
            self._exp_avg,
            self._exp_avg_sq,
            copy=compute.flat[first:] if compute else None,
            decayed=weights.decayed - first,
        )
        self._stacks: list[Stack] = []
        if first:
            copies = compute.stacks if compute else [None] * len(weights.stacks)
            momenta = weights.stacks_of(self._momentum)
            bundles = zip(weights.stacks, gradients.stacks, momenta, copies, strict=True)
            self._stacks = [Stack(*bundle) for bundle in bundles]
        self.tensors = self._named()

    def _named(self) -> dict[str, Array]:
        """The tensors of `optimizer_shapes`, as views of the optimizer's flat buffers."""
        flats = {"momentum": (self._momentum, 0), "exp_avg": (self._exp_avg, self._first)}
        flats["exp_avg_sq"] = (self._exp_avg_sq, self._first)
        views = {}
        for key, shape in optimizer_shapes(self.model.config, self.train_config.optimizer).items():
            moment, _, name = key.partition(".")
            flat, first = flats[moment]
            start = self.model.weights.offsets[name] - first
            views[key] = flat[start : start + math.prod(shape)].reshape(shape)
        return views

    def load(self, tensors: Mapping[str, np.ndarray], counters: Mapping[str, int]) -> None:
        """Go on from a checkpoint's tensors (named as `optimizer_shapes` names them) and counters."""
        for name, view in self.tensors.items():
            self.ops.copy(tensors[name], out=view)
        self.ops.copy(np.array([counters[name] for name in COUNTERS], np.int64), out=self.counters)

    def step(self, lr: Array) -> None:
        """Move the weights by the model's gradients. `lr`, float32 [1], is the learning rate."""
        self.ops.global_norm(self.model.gradients.flat, out=self.norm)
        self.ops.plan_update(self.norm, self.model.metrics, self.counters, lr, out=self._plan, rule=self._rule)
        if self._stacks:
            self.ops.muon(self._stacks, self._plan, momentum=MOMENTUM, coefficients=self.coefficients)
        self.ops.adamw(self._buffers, self._plan, self._rule)

    def state(self) -> dict[str, int]:
        """The counters by name, read from the device."""
        return dict(zip(COUNTERS, self.ops.to_host(self.counters).tolist(), strict=True))
