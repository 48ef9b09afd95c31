"""The choice of the next token in NumPy."""

import numpy as np

from gpt.ops.interface import SamplingRule, moderate

LARGEST = float(np.finfo(np.float32).max)


def choose(logits: np.ndarray, seen: np.ndarray, uniform: float, rule: SamplingRule) -> int:
    """The id drawn from finite logits [vocab], as `Operations.sample` defines it."""
    temperature, top_k, top_p, repetition_penalty = rule
    logits = logits.astype(np.float64)
    seen = np.flatnonzero(seen)
    penalty, found = moderate(repetition_penalty), logits[seen]
    logits[seen] = np.clip(np.where(found > 0, found / penalty, found * penalty), -LARGEST, LARGEST)
    if temperature == 0:
        return int(np.argmax(logits))
    candidates = np.arange(logits.size)
    if 0 < top_k < logits.size:
        least = np.partition(logits, -top_k)[-top_k]
        candidates = np.flatnonzero(logits >= least)
    # The largest is subtracted first, so that no temperature, however low, overflows.
    weights = np.exp((logits[candidates] - logits.max()) / moderate(temperature))
    if top_k or top_p < 1:  # a draw among all needs no order
        heaviest = np.argsort(-logits[candidates], kind="stable")[: top_k or None]
        reached = np.cumsum(weights[heaviest])
        kept = np.sort(heaviest[: int(np.searchsorted(reached, top_p * reached[-1])) + 1])
        candidates, weights = candidates[kept], weights[kept]
    reached = np.cumsum(weights)
    return int(candidates[np.searchsorted(reached, uniform * reached[-1], side="right")])
