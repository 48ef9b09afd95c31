"""The gradient of the token embedding in NumPy: sums over the rows of equal tokens."""

import numpy as np

from gpt.ops.cpu.sums import ones

FEW_TOKENS = 16  # the rows of the last few tokens are added token by token


class TokenRows:
    """The rows of a batch by their token; `order` is a stable argsort of ids.

    Example: ids [5, 3, 5, 5] with order [1, 0, 2, 3] have the tokens [3, 5]. Token 3 has 1 row, from place 0 of order
    on: row 1. Token 5 has 3 rows, from place 1 on: rows 0, 2 and 3.
    """

    def __init__(self, ids: np.ndarray, order: np.ndarray) -> None:
        sorted_ids = ids.reshape(-1)[order]
        starts = np.append(np.flatnonzero(np.diff(sorted_ids, prepend=-1)), ids.size)
        self._order, self._starts = order, starts
        self._tokens, self._counts = sorted_ids[starts[:-1]], np.diff(starts)
        self.count = len(self._tokens)

    def add_gradients(self, t: slice, dout: np.ndarray, dwte: np.ndarray) -> None:
        """Add the rows of dout of tokens number t to their rows of dwte.

        The first row of every token at once, then the second of those that have one, and so on. In the example: rows 1
        and 0, then row 2, then row 3. np.add.reduceat takes twice as long or more.
        """
        token, start, count, turn = self._tokens[t], self._starts[t], self._counts[t], 0
        while len(token) > FEW_TOKENS:
            dwte[token] += dout[self._order[start + turn]]
            turn += 1
            (more,) = (count > turn).nonzero()
            token, start, count = token[more], start[more], count[more]
        # The last few tokens may have many rows left.
        for id, begin, rows in zip(token.tolist(), start.tolist(), count.tolist(), strict=True):
            rest = dout[self._order[begin + turn : begin + rows]]
            dwte[id] += np.matmul(ones(len(rest), rest.dtype), rest)
