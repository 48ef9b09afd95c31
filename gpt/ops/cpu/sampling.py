"""The choice of the next token in NumPy."""

import numpy as np

from gpt.ops.interface import moderate

LARGEST = float(np.finfo(np.float32).max)


def choose(
    logits: np.ndarray, seen: np.ndarray, temperature: float, top_k: int, top_p: float, repetition_penalty: float,
    uniform: float,
) -> int:  # fmt: skip
    """The id drawn from finite logits [vocab], as `CpuOps.sample` says."""
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
