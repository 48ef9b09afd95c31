"""Token ids in batches: which step reads which tokens, as a function of the step's number alone.

The last part of the tokens is held out for evaluation. The rest trains, and is read in windows of --seq tokens as if
its end were joined to its beginning. `--sampling` chooses their order:

- shuffled: a pass cuts the text into windows and reads each of them once, in an order that looks random. The next pass
  cuts at other positions and has another order.
- sequential: one window after the other, as the text runs. A batch is then one stretch of neighboring text, and a model
  learns more slowly from those.
- random: each window is drawn on its own. In the time of a pass, some text is read twice and some is never read.

For example, take 43 training tokens, --seq 4, --batch 4 and --seed 0. Positions 0 to 41 have a label, which is the
token one position on. That is a circle of 42 positions, in which position 0 follows position 41.

- shuffled: a pass has 42 // 4 = 10 windows. Pass 0 has the offset 1, so its window w starts at position 1 + 4w. It
  reads the windows in the order 1, 2, 6, 4, 3, 5, 8, 0, 7, 9: they start at 5, 9, 25, 17, 13, 21, 33, 1, 29, 37.
  Positions 0 and 41 are left over. Pass 1 has the offset 40 and the order 9, 5, 1, …: its windows start at 34, 18, 2,
  …, and the one at 40 goes on from position 41 to position 0. Batch 0 has the windows at 5, 9, 25, 17, batch 1 those at
  13, 21, 33, 1, and batch 2 those at 29, 37 of pass 0 and at 34, 18 of pass 1.
- sequential: batch 0 has the windows at 0, 4, 8, 12, batch 1 those at 16, 20, 24, 28, and batch 2 those at 32, 36, 40
  and 2. The window at 40 reads positions 40, 41, 0, 1.
- random: a window starts at one of 0 to 38, so that it never goes beyond the end. Batch 0 has the windows at 1, 0, 23,
  9, batch 1 those at 38, 31, 11, 29.

Only windows are read from a memory map, so a token file may be larger than memory. While a batch is read, the operating
system already fetches the next one. With 5 ms between batches, 64 windows of 1,024 tokens of a 2 GB file that was not
in memory took 2 ms on average instead of 30 (an idle machine, means over 60 batches).
"""

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from gpt.arithmetic import ceil_div
from gpt.errors import UserError
from gpt.tokens import Tokens

EVAL_STEPS = 20  # an evaluation reads as much as so many steps, however long the held-out tail is

# Rounds of the Feistel network: after four, neighboring windows follow one another more often than by chance.
_ROUNDS = 6

Batch = tuple[np.ndarray, np.ndarray]  # ids and labels


def token_order(ids: np.ndarray, sequences: int | None = None) -> np.ndarray:
    """Indices that sort ids [batch, seq] stably, int32 [batch · seq].

    embedding_backward adds up the gradients of equal tokens in this order. If `sequences` is given, each group of that
    many rows is sorted on its own, and its indices count from the group's first row.

    For example, ids [[7, 2, 7], [2, 5, 2]] lie at indices 0 to 5: id 2 at 1, 3 and 5, id 5 at 4, id 7 at 0 and 2. The
    result is [1, 3, 5, 4, 0, 2]. With sequences=1 it is [1, 0, 2] for the first row and [0, 2, 1] for the second,
    together [1, 0, 2, 0, 2, 1].
    """
    if sequences and sequences < len(ids):
        return np.concatenate([token_order(ids[start : start + sequences]) for start in range(0, len(ids), sequences)])
    if ids.max() < 2**16:
        ids = ids.astype(np.uint16)  # NumPy sorts 16-bit integers by radix, several times as fast
    return np.argsort(ids, axis=None, kind="stable").astype(np.int32)


class Shuffle:
    """The numbers 0 … count − 1 in an order that is drawn from `generator`. Takes memory for about 6 √count numbers.

    A number is a cell of a table of about √count rows and columns. A Feistel network shuffles the table: its rounds
    shift each row, and then each column, by a drawn distance (Luby & Rackoff 1988). The table has up to √count cells
    too many. A number that lands in one of those goes through the network again, until it lands in another cell (cycle
    walking: Black & Rogaway 2002).

    For example, 10 numbers take 3 rows of 4, and number 5 is in row 1, column 1. A round that shifts row 1 by 2 moves
    it to column 3. If the next round shifts column 3 by 1, it moves to row 2, column 3. That is cell 11, one of the two
    too many; if it stays there, it goes on from there with the first round.
    """

    def __init__(self, count: int, generator: np.random.Generator) -> None:
        self.count, self._width = count, math.isqrt(count - 1) + 1
        self._height = ceil_div(count, self._width)
        self._shifts = [
            (generator.integers(self._width, size=self._height), generator.integers(self._height, size=self._width))
            for _ in range(_ROUNDS // 2)
        ]

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """The numbers at `places` (int64 [n], from 0 to count − 1) of the order, int64 [n]."""
        row, column = places // self._width, places % self._width
        for row_shifts, column_shifts in self._shifts:
            column = (column + row_shifts[row]) % self._width
            row = (row + column_shifts[column]) % self._height
        numbers: np.ndarray = row * self._width + column
        if (outside := numbers >= self.count).any():
            numbers[outside] = self[numbers[outside]]
        return numbers


@lru_cache(maxsize=2)
def _pass(seed: int, number: int, circle: int, count: int) -> tuple[int, Shuffle]:
    """The offset of a pass, from 0 to circle − 1, and the order of its `count` windows."""
    generator = philox(seed, number)
    return int(generator.integers(circle)), Shuffle(count, generator)


def philox(seed: int, number: int) -> np.random.Generator:
    """Philox (Salmon et al. 2011) keyed by both numbers, which may have any size: its draws depend on the key alone."""
    return np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, number % 2**64], np.uint64)))


class Batches:
    """Training and validation batches of `tokens` (ids [n], as an array in memory or memory-mapped, or in files).

    The last floor(n · val_fraction) tokens, `val_tokens` of them, are held out; the first n_t = `train_tokens` train.
    `counted`, uint8 [n], is 1 for the tokens that a model shall learn to predict, such as those of the answers in a
    text of questions and answers, and 0 for the others, whose labels are -1; None if all tokens count.
    `note` is one line for the user if an evaluation was wanted but the tail is below seq + 1, else None.
    Raises UserError if n_t is below seq + 1.
    """

    def __init__(
        self,
        tokens: np.ndarray | Tokens,
        batch: int,
        seq: int,
        *,
        sampling: str,
        seed: int,
        val_fraction: float,
        accumulate: int = 1,
        counted: np.ndarray | None = None,
    ) -> None:
        self.tokens = tokens if isinstance(tokens, Tokens) else Tokens([tokens])
        self.counted = None if counted is None else Tokens([counted])
        self.batch, self.seq, self.sampling, self.seed = batch, seq, sampling, seed
        self._val_windows = EVAL_STEPS * batch * accumulate  # the same, whoever shares out a step among ranks
        self.val_tokens = math.floor(len(tokens) * val_fraction)
        self.train_tokens = len(tokens) - self.val_tokens
        if self.train_tokens <= seq:
            lower = "--seq or --val-fraction" if self.val_tokens else "--seq"
            raise UserError(
                f"the text is too short: {self.train_tokens} tokens to train on, but --seq {seq} needs {seq + 1}: "
                f"lower {lower}, or give a longer text"
            )
        self.note: str | None = None
        if val_fraction and self.val_tokens <= seq:
            self.note = (
                f"Note: no evaluation, as only {self.val_tokens} tokens are held out and --seq {seq} needs {seq + 1}: "
                "raise --val-fraction, or lower --seq"
            )
        self._prefetched: dict[int, np.ndarray] = {}  # index of a batch → starts of its windows, announced already
        self._index: int | None = None  # index of the last batch

    def train(self, index: int, out: Batch | None = None) -> Batch:
        """Batch number `index`, counted from 0 (a step takes `accumulate` batches): ids and labels, int32 [batch, seq].

        Labels are the ids one position on. C = n_t − 1 positions have one, and after the last of them comes the first.
        Row b is the window that starts, with g = index · batch + b,
        - shuffled: at (offset + w · seq) mod C, with (pass, place) = divmod(g, C // seq), and w the window at this
          place in the pass's order. The offset, uniform in 0 … C − 1, and the order are drawn from Philox (Salmon et
          al. 2011) keyed by (seed, pass);
        - sequential: at g · seq mod C;
        - random: at a position drawn uniformly from 0 … C − seq by Philox keyed by (seed, index).
        The example at the top of this file has all three. The batch is written into `out` (ids, labels) if given. The
        same index gives the same batch, no matter which were asked for before. If rank r of R ranks asks for
        index · R + r, no two of them read the same window in a pass.
        """
        index, before = int(index), self._index
        starts = self._prefetched.get(index)
        if starts is None:
            starts = self._announced(index)
        if self.tokens.reads_ahead:
            following = index + (1 if before is None else index - before)  # one of several ranks asks for every R-th
            self._prefetched, self._index = {following: self._announced(following)}, index
        return self._read(starts, self.train_tokens - 1, out or self._empty(self.batch))

    def count(self, index: int) -> int:
        """The number of labels of batch `index` that count."""
        if self.counted is None:
            return self.batch * self.seq
        positions = (self._starts(index)[:, None] + np.arange(self.seq)) % (self.train_tokens - 1)
        return int(np.count_nonzero(self.counted.at(positions + 1)))

    def validation(self) -> Iterator[Batch]:
        """Batches of the held-out tail, int32 [rows, seq] with rows ≤ batch; the same ones every time.

        The tail is cut into windows of seq + 1 tokens. If they fill more than EVAL_STEPS steps of `accumulate` batches,
        that many evenly spread windows stand for them. There are none if the tail is below seq + 1.
        """
        windows = self.val_tokens // (self.seq + 1)
        count = min(windows, self._val_windows)
        chosen = np.array([i * windows // count for i in range(count)], np.int64)
        starts = self.train_tokens + chosen * (self.seq + 1)
        self.tokens.announce(starts, self.seq + 1)
        for rows in (starts[first : first + self.batch] for first in range(0, count, self.batch)):
            yield self._read(rows, len(self.tokens) - 1, self._empty(len(rows)))

    def _announced(self, index: int) -> np.ndarray:
        """The starts of the windows of micro-batch `index`, int64 [batch], after announcing them."""
        starts = self._starts(index)
        self.tokens.announce(starts, self.seq + 1)
        return starts

    def _starts(self, index: int) -> np.ndarray:
        """The starts of the windows of micro-batch `index`, int64 [batch]."""
        order = {"shuffled": self._shuffled, "sequential": self._sequential, "random": self._random}[self.sampling]
        return order(index)

    def _shuffled(self, index: int) -> np.ndarray:
        circle, count = self.train_tokens - 1, (self.train_tokens - 1) // self.seq
        number, first = divmod(index * self.batch, count)
        windows = np.empty(self.batch, np.int64)
        filled = 0
        while filled < self.batch:  # once, unless the batch goes beyond the end of a pass
            places = np.arange(first, min(first + self.batch - filled, count), dtype=np.int64)
            offset, order = _pass(self.seed, number, circle, count)
            windows[filled : filled + len(places)] = (offset + order[places] * self.seq) % circle
            number, first, filled = number + 1, 0, filled + len(places)
        return windows

    def _sequential(self, index: int) -> np.ndarray:
        circle = self.train_tokens - 1
        return (index * self.batch * self.seq % circle + np.arange(self.batch, dtype=np.int64) * self.seq) % circle

    def _random(self, index: int) -> np.ndarray:
        return philox(self.seed, index).integers(self.train_tokens - self.seq, size=self.batch)

    def _read(self, starts: np.ndarray, circle: int, out: Batch) -> Batch:
        """Fill `out` with the tokens of the windows at `starts` and with their labels.

        Position `circle` − 1 is followed by position 0. For example, with 42 positions and windows of 4, the window at
        40 has the tokens 40, 41, 0 and 1, and the labels 41, 42, 1 and 2.
        """
        ids, labels = out
        last = circle - self.seq  # start of the last window that does not cross the circle's end
        whole = np.minimum(starts, last)
        windows = self.tokens.windows(whole, self.seq + 1)
        ids[...], labels[...] = windows[:, :-1], windows[:, 1:]
        if self.counted is not None:
            labels[self.counted.windows(whole + 1, self.seq) == 0] = -1
        # The few windows that go on at the circle's beginning are read once more, token by token.
        if (beyond := starts > last).any():
            positions = (starts[beyond, None] + np.arange(self.seq)) % circle
            ids[beyond], labels[beyond] = self.tokens.at(positions), self.tokens.at(positions + 1)
            if self.counted is not None:
                labels[beyond] = np.where(self.counted.at(positions + 1), labels[beyond], -1)
        return out

    def _empty(self, rows: int) -> Batch:
        return np.empty((rows, self.seq), np.int32), np.empty((rows, self.seq), np.int32)
