"""The cross-entropy of a block of rows in NumPy."""

import numpy as np

from gpt.ops.cpu.sums import ones


def cross_entropy(
    x: np.ndarray, labels: np.ndarray, losses: np.ndarray, hits: np.ndarray, e: np.ndarray, scale: np.ndarray | None
) -> None:
    """As `Operations.softmax_cross_entropy`, of logits x [rows, vocab], with e [rows, vocab] as scratch memory.

    With `scale`, e gets the gradient of the logits. e may be x.
    """
    rows, counts = np.arange(len(x)), labels >= 0
    best = np.argmax(x, axis=1)
    largest, wanted = x[rows, best], x[rows, labels]
    np.subtract(x, largest[:, None], out=e)
    np.exp(e, out=e)
    total = np.matmul(e, ones(e.shape[1], e.dtype))
    np.equal(best, labels, out=hits, casting="unsafe")
    np.subtract(np.log(total), wanted - largest, out=losses)
    losses[~counts] = 0
    if scale is not None:
        weight = counts * scale  # 0 for a row that does not count
        e *= (weight / total)[:, None]
        e[rows, labels] -= weight
