"""Token ids in batches: what step reads what, as a function of its number alone.

The last part of the tokens is held out for evaluation; training walks the rest in a circle, or draws windows from it.
Slices of a memory map are all that is read, so a token file may be larger than memory.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np

from gpt.errors import UserError

EVAL_BATCHES = 20  # an evaluation's length stays the same however long the held-out tail is

Batch = tuple[np.ndarray, np.ndarray]


def token_order(ids: np.ndarray, sequences: int | None = None) -> np.ndarray:
    """The places of ids sorted by id and then by place, int32 [ids.size]: what sums up gradients of equal tokens.

    With `sequences`, that of every so many rows of ids by themselves, one behind the other.
    """
    if sequences and sequences < len(ids):
        return np.concatenate([token_order(ids[start : start + sequences]) for start in range(0, len(ids), sequences)])
    if ids.max() < 2**16:
        ids = ids.astype(np.uint16)  # which NumPy sorts by radix, several times as fast
    return np.argsort(ids, axis=None, kind="stable").astype(np.int32)


class Batches:
    """Training and validation batches of `tokens` (an array of ids [n], memory-mapped or not).

    The last floor(n · val_fraction) tokens, `val_tokens` of them, are held out; the first n_t = `train_tokens` train.
    `note` is one line for the user where a wanted evaluation cannot be had because the tail is below seq + 1, else
    None. Raises UserError if n_t is below seq + 1.
    """

    def __init__(self, tokens: np.ndarray, batch: int, seq: int, *, sampling: str, seed: int, val_fraction: float):
        self.tokens, self.batch, self.seq, self.sampling, self.seed = tokens, batch, seq, sampling, seed
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

    def train(self, index: int, out: Batch | None = None) -> Batch:
        """Micro-batch number `index` (step · accumulate + micro-step, any size): ids and labels, int32 [batch, seq].

        Labels are the ids one position on. Position p runs in a circle over 0 … n_t − 2.
        - sequential: sequence b begins at (index · batch + b) · seq mod (n_t − 1);
        - random: sequences begin anywhere in 0 … n_t − 1 − seq, drawn from Philox (Salmon et al. 2011) keyed by
          (seed, index).
        Written into `out` (ids, labels) if given. The same index gives the same batch, whatever was asked for before.
        """
        spans = self._random_spans(index) if self.sampling == "random" else self._sequential_spans(index)
        return self._read(spans, out or self._empty(self.batch))

    def validation(self) -> Iterator[Batch]:
        """Batches of the held-out tail, int32 [rows, seq] with rows ≤ batch; the same ones every time.

        The tail is cut into windows of seq + 1 tokens; where they fill more than EVAL_BATCHES batches, that many
        batches of evenly spread windows stand for them. Nothing if the tail is below seq + 1.
        """
        windows = self.val_tokens // (self.seq + 1)
        count = min(windows, EVAL_BATCHES * self.batch)
        for first in range(0, count, self.batch):
            chosen = [i * windows // count for i in range(first, min(first + self.batch, count))]
            starts = [self.train_tokens + window * (self.seq + 1) for window in chosen]
            yield self._read([(start, start + self.seq) for start in starts], self._empty(len(starts)))

    def _sequential_spans(self, index: int) -> Iterator[tuple[int, int]]:
        """Sequences follow one another, so a batch is one run around the circle."""
        circle = self.train_tokens - 1
        wanted = self.batch * self.seq
        start = int(index) * wanted % circle
        while wanted:
            stop = min(start + wanted, circle)
            yield start, stop
            wanted -= stop - start
            start = 0

    def _random_spans(self, index: int) -> Iterator[tuple[int, int]]:
        key = np.array([self.seed % 2**64, int(index) % 2**64], np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        for start in generator.integers(self.train_tokens - self.seq, size=self.batch).tolist():
            yield start, start + self.seq

    def _read(self, spans: Iterable[tuple[int, int]], out: Batch) -> Batch:
        """Fill `out` with the tokens at the positions of `spans`, and with those one on."""
        spans = list(spans)
        for array, ahead in zip(out, (0, 1), strict=True):
            row = np.concatenate([self.tokens[start + ahead : stop + ahead] for start, stop in spans])
            array[...] = row.reshape(array.shape)
        return out

    def _empty(self, rows: int) -> Batch:
        return np.empty((rows, self.seq), np.int32), np.empty((rows, self.seq), np.int32)
