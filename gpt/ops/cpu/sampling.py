"""The choice of the next tokens in NumPy, for all sequences with the same rule at once.

Each row is summed by itself and in the order of its ids, so what it draws does not depend on the other rows.
"""

import numpy as np

LARGEST = float(np.finfo(np.float32).max)

Rule = tuple[float, float, float, float]  # a row of the rules: see `SamplingRule.numbers`


def choose(logits: np.ndarray, seen: np.ndarray, uniform: np.ndarray, out: np.ndarray, rules: np.ndarray) -> None:
    """As `Operations.sample`, of logits [rows, vocab] without padding."""
    for rule, rows in _together(rules):
        chosen = _choose(logits[rows].astype(np.float64), seen[rows], uniform[rows], rule)
        out[rows] = np.where(np.isfinite(logits[rows]).all(axis=-1), chosen, -1)
    drawn = np.flatnonzero(out >= 0)
    seen[drawn, out[drawn]] = 1


def _together(rules: np.ndarray) -> list[tuple[Rule, slice | list[int]]]:
    """Each rule with the rows that have it."""
    if (rules == rules[0]).all():
        return [(tuple(rules[0].tolist()), slice(None))]
    rows: dict[Rule, list[int]] = {}
    for row, rule in enumerate(rules.tolist()):
        rows.setdefault(tuple(rule), []).append(row)
    return list(rows.items())


def _choose(logits: np.ndarray, seen: np.ndarray, uniform: np.ndarray, rule: Rule) -> np.ndarray:
    """The ids, int [rows], drawn from logits [rows, vocab], which are overwritten."""
    sharpness, top_k, top_p, penalty = rule
    marked = np.nonzero(seen)
    found = logits[marked]
    logits[marked] = np.clip(np.where(found > 0, found / penalty, found * penalty), -LARGEST, LARGEST)
    if sharpness == 0:
        likeliest: np.ndarray = np.argmax(logits, axis=-1)
        return likeliest
    largest = np.maximum.reduce(logits, axis=-1, keepdims=True)
    is_cut = 0 < top_k < logits.shape[-1]
    ids, candidates = _heaviest(logits, int(top_k)) if is_cut else (None, logits)
    # The largest is subtracted first, so that no temperature, however low, overflows.
    weights = np.exp((candidates - largest) * sharpness)
    if is_cut or top_p < 1:  # a draw among all needs no order
        _drop_unlikely(weights, candidates, int(top_k) if is_cut else weights.shape[-1], top_p)
    place = _drawn(weights, uniform)
    return place if ids is None else ids[np.arange(len(ids)), place]


def _drop_unlikely(weights: np.ndarray, candidates: np.ndarray, top_k: int, top_p: float) -> None:
    """Set weights [rows, n] to 0, but for the `top_k` heaviest of a row, and of these the first that reach `top_p`.

    candidates are their logits; of equal ones the first counts as the heavier. For example, of the weights 1, 5 and 4,
    which add up to 10, a top_p of 0.8 keeps 5 and 4: 5 alone is below 8.
    """
    rows, order = np.arange(len(weights))[:, None], np.argsort(-candidates, axis=-1, kind="stable")
    heaviest = weights[rows, order]
    heaviest[:, top_k:] = 0
    reached = np.cumsum(heaviest, axis=-1)
    dropped = heaviest == 0
    dropped[:, 1:] |= reached[:, :-1] >= top_p * reached[:, -1:]
    weights[rows, order] = np.where(dropped, 0, heaviest)


def _drawn(weights: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """The place in each row of weights [rows, n] that `uniform` [rows], numbers from 0 to 1, falls on.

    For example, 0.7 falls on the last of the weights 1, 5 and 4: they reach 1, 6 and 10, and 7 is beyond 6.
    """
    reached = np.cumsum(weights, axis=-1)
    passed = reached <= uniform[:, None] * reached[:, -1:]
    # Not beyond the last token with a weight, whatever the rounding
    place: np.ndarray = np.minimum(passed.sum(axis=-1), np.argmax(reached, axis=-1))
    return place


def _heaviest(logits: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids, ascending, and the logits of each row's `count` largest, and of all that equal the smallest of these.

    Both are [rows, n]; a row with fewer than n ends in logits of -inf.
    """
    least = np.partition(logits, -count, axis=-1)[:, -count]
    rows, columns = np.nonzero(logits >= least[:, None])
    values = logits[rows, columns]
    if len(rows) == count * len(logits):  # no ties, mostly
        return columns.reshape(-1, count), values.reshape(-1, count)
    counts = np.bincount(rows, minlength=len(logits))
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    ids = np.zeros((len(logits), max(count, int(counts.max()))), np.intp)
    candidates = np.full(ids.shape, -np.inf)
    ids[rows, places], candidates[rows, places] = columns, values
    return ids, candidates
