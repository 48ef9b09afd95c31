"""The optimizers' arithmetic in NumPy: the numbers of a step, AdamW of a block, and Muon of a matrix."""

import math
from typing import NamedTuple

import numpy as np

from gpt.ops.cpu.orthogonal import orthogonalized
from gpt.ops.interface import MUON_RMS, AdamBuffers, Coefficients, Stack, UpdateRule
from gpt.system.threads import Scratch


def plan_update(
    norm: np.ndarray, loss: np.ndarray, counters: np.ndarray, lr: np.ndarray, out: np.ndarray, rule: UpdateRule
) -> None:
    """As `Operations.plan_update`."""
    out[0] = not (np.isfinite(norm).all() and np.isfinite(loss).all())
    if out[0]:
        counters[1:] += 1
        return
    counters[0] += 1
    counters[2] = 0
    step, rate, (beta1, beta2) = int(counters[0]), float(lr[0]), rule.betas
    scale = min(1.0, rule.clip / (float(norm[0]) + 1e-6)) if rule.clip else 1.0
    out[1:] = scale, rate, 1 - rate * rule.weight_decay, rate / (1 - beta1**step), math.sqrt(1 - beta2**step)


class AdamStep(NamedTuple):
    """The numbers of one step of AdamW.

    m = beta1 m + factor g, v = beta2 v + (root g)², w = keep w - step_size m / (√v + eps), element by element.
    """

    beta1: float
    beta2: float
    factor: float
    root: float
    eps: float
    keep: float  # 1 for weights that do not decay
    step_size: float

    @classmethod
    def of(cls, plan: np.ndarray, rule: UpdateRule) -> "AdamStep | None":
        """The step that `plan_update` planned, or None if it is skipped. Bias corrections went into eps and step_size:
        (m / c1) / (√(v / c2²) + eps) is c2 / c1 · m / (√v + eps c2).
        """
        skip, scale, _, decay, step_size, correction = plan.tolist()
        if skip:
            return None
        beta1, beta2 = rule.betas
        factor, root = scale * (1 - beta1), scale * math.sqrt(1 - beta2)
        return cls(beta1, beta2, factor, root, rule.eps * correction, decay, step_size * correction)


def adam_step(buffers: AdamBuffers, step: AdamStep, r: slice, scratch: Scratch) -> None:
    """One step of AdamW for elements r."""
    w, g, m, v = buffers.weights[r], buffers.gradients[r], buffers.exp_avg[r], buffers.exp_avg_sq[r]
    t = scratch("adamw", w.shape, w.dtype)
    # The first moment: m = beta1 m + factor g.
    m *= step.beta1
    m += np.multiply(g, step.factor, out=t)
    # The second moment: v = beta2 v + (root g)².
    np.multiply(g, step.root, out=t)
    v *= step.beta2
    v += np.multiply(t, t, out=t)
    # The step: m / (√v + eps).
    denominator = np.sqrt(v, out=t)
    denominator += step.eps
    np.divide(m, denominator, out=t)
    w[: max(0, buffers.decayed - r.start)] *= step.keep
    w -= np.multiply(t, step.step_size, out=t)


def move_matrix(
    stack: Stack,
    number: int,
    plan: np.ndarray,
    momentum: float,
    coefficients: Coefficients,
    scratch: Scratch,
) -> None:
    """One step of Muon for matrix `number` of a stack."""
    _, scale, rate, decay, _, _ = plan.tolist()
    w, g, m = stack.weights[number], stack.gradients[number], stack.momentum[number]
    u = np.multiply(g, scale, out=scratch("muon", g.shape, g.dtype))
    m += np.multiply(u - m, 1 - momentum)
    u *= 1 - momentum
    u += m * momentum
    step_size = rate * MUON_RMS * math.sqrt(max(w.shape))
    w *= decay
    w -= orthogonalized(u, coefficients, step_size)
