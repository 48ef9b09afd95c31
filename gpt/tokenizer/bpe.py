"""Byte-pair encoding, the algorithm alone: learn merges from counted words. gpt/tokenizer/merges.py applies them.

Symbols are numbers, called ids here. The alphabet has the ids 0 … size − 1. Merge number k, whose rank is k, joins a
pair of ids into another. Learned merges make the ids size, size + 1 … in this order. In a vocabulary from elsewhere,
several merges may make the same id.

Words come as one row of ids, int32 [n], with GAP before the first word, between any two and after the last. With the
alphabet a = 0, b = 1, the words "aab" and "ab" are the row [-1, 0, 0, 1, -1, 0, 1, -1]. One NumPy call handles one
merge for all words of a row. The places of a pair are the positions of its left symbols in the row: here (a, b) has the
places 2 and 5.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop, heappush

import numpy as np

from gpt.errors import UserError

Pair = tuple[int, int]
GAP = -1  # id that separates words
GONE = -2  # id at the positions inside a merged symbol

_FEWEST_CANDIDATES = 1000  # pairs that enter the queue of learning at the first search
_POSITIONS_AT_ONCE = 1 << 20  # positions numbered at a time, so that their numbers take little memory
_FIRST = np.zeros(1, np.intp)  # index at which the first group of a sorted array begins


def learn(
    row: np.ndarray,
    counts: np.ndarray,
    alphabet: Sequence[str],
    most: int,
    joinable: Callable[[str, str], bool] = lambda left, right: True,
    progress: Callable[[int, int], None] | None = None,
) -> list[Pair]:
    """Merge the most frequent pair again and again (Sennrich et al. 2016); return the pairs in that order.

    `row` holds distinct words in any order and is overwritten. `counts`, int64 [words], says how often each occurs,
    and `alphabet[id]` is the string of an id. Learning ends after `most` merges or when no pair occurs twice. Ties go
    to the pair with the smaller left id, then to the one with the smaller right id. A pair is skipped for good if its
    string exists already (two ids would look alike) or if `joinable(left string, right string)` is false. `progress` is
    called as (merges done, most) after every merge. Raises UserError if the row is too long to search.

    Once both ids of a pair exist, its count can only fall. So a count in the queue is an upper bound: the first pair of
    the queue is counted again, and goes back into the queue if it has become rarer. A merge never makes a pair that is
    more frequent than the merged pair, so rare pairs can wait: the queue holds the pairs that occur at least `floor`
    times, and when it is empty, the words are searched again with a lower floor.

    Example: "aab" occurs twice and "ab" three times, so (a, b) occurs five times and becomes id 2. Then (a, ab) is
    left: it occurs twice and becomes id 3.

    >>> row = np.array([GAP, 0, 0, 1, GAP, 0, 1, GAP], np.int32)
    >>> learn(row, np.array([2, 3]), ["a", "b"], most=10)
    [(0, 1), (0, 2)]
    """
    most = min(most, len(row))  # each merge takes symbols away, so that memory follows the text
    words = _Words(row, counts, len(alphabet) + most)
    pieces, known = list(alphabet), set(alphabet)
    merges: list[Pair] = []
    floor = math.inf
    while floor > 2 and len(merges) < most:
        floor, candidates = words.frequent(len(pieces), floor, max(_FEWEST_CANDIDATES, (most - len(merges)) // 2))
        queue = [(-count, pair) for pair, (count, _) in candidates.items()]
        heapify(queue)
        while queue and len(merges) < most:
            # The first pair of the queue goes back if it has become rarer since it was counted
            bound, pair = heappop(queue)
            count, start = words.count(pair, candidates.pop(pair)[1])
            if count < -bound:
                if count >= floor:
                    candidates[pair] = count, start
                    heappush(queue, (-count, pair))
                continue
            # It is the most frequent of all: merge it, unless it must never be merged
            left, right = pair
            piece = pieces[left] + pieces[right]
            if piece in known or not joinable(pieces[left], pieces[right]):
                continue
            for count, new, new_start in words.merge(pair, start, len(pieces), floor):
                candidates[new] = count, new_start
                heappush(queue, (-count, new))
            pieces.append(piece)
            known.add(piece)
            merges.append(pair)
            if progress:
                progress(len(merges), most)
        words.close_up()
    return merges


class _Words:
    """The words of a row while pairs are merged in them.

    Symbols keep their positions: the id of a merged symbol stands at the first and at the last position that it covers,
    and GONE between them. `_width[id]` is the number of positions that a symbol covers. So the right neighbor of the
    symbol at `start` begins at `start + width`, the left neighbor ends at `start - 1`, and the places of other pairs
    stay valid.
    """

    def __init__(self, row: np.ndarray, counts: np.ndarray, size: int):
        counts = np.append(counts, 0)  # for the last GAP
        counts = counts.astype(np.min_scalar_type(counts.max()))
        self._row = row
        self._weight = np.repeat(counts, np.diff(np.flatnonzero(row == GAP), append=len(row)))  # count of the word, [n]
        self._stays = np.ones(len(row), bool)  # positions at which a symbol begins; close_up drops the others
        self._width = np.ones(size, np.int32)

    def close_up(self) -> None:
        """Let every symbol cover one position again."""
        self._row = self._row[self._stays]
        self._weight = self._weight[self._stays]
        self._stays = np.ones(len(self._row), bool)
        self._width[:] = 1

    def frequent(self, size: int, below: float, wanted: int) -> tuple[int, dict[Pair, tuple[int, np.ndarray]]]:
        """Find the frequent pairs of a row that is closed up: (floor, {pair: (count, places)}).

        All pairs that occur at least `floor` times are returned. The floor is at least 2, less than `below`, and
        such that about `wanted` pairs reach it if it can be. All ids of the row are less than `size`.
        Raises UserError if a place does not fit into 31 bits, or a pair and its place into 63.

        Example: "aab" occurs twice and "ab" three times. With size 2 and 4 bits for a place, the pair (a, b) at place 5
        is sorted as the integer (0 * 2 + 1) << 4 | 5 = 21. Sorted, the pairs are 1 (a, a at 1), 18 and 21 (a, b at 2
        and 5). The groups begin at the indices 0 and 1, and their weights add up to 2 and 2 + 3.

        >>> words = _Words(np.array([GAP, 0, 0, 1, GAP, 0, 1, GAP], np.int32), np.array([2, 3]), size=2)
        >>> floor, pairs = words.frequent(size=2, below=math.inf, wanted=10)
        >>> floor, {pair: (count, places.tolist()) for pair, (count, places) in pairs.items()}
        (2, {(0, 0): (2, [1]), (0, 1): (5, [2, 5])})
        """
        row = self._row
        # One integer holds a pair and its place: sorting it takes less time than an argsort, and half the memory
        bits = len(row).bit_length()
        if bits > 31 or 2 * size.bit_length() + bits > 63:
            raise UserError("the text has too many distinct words for a vocabulary of this size: train on a part of it")
        packed = row[:-1].astype(np.int64)
        packed *= size
        packed += row[1:]
        packed <<= bits
        for at in range(0, len(packed), _POSITIONS_AT_ONCE):
            packed[at : at + _POSITIONS_AT_ONCE] += np.arange(at, min(at + _POSITIONS_AT_ONCE, len(packed)))
        # A pair with a GAP is none: it sorts behind all others and is cut off
        packed[(row[:-1] == GAP) | (row[1:] == GAP)] = nowhere = np.iinfo(np.int64).max
        packed.sort()
        packed = packed[: np.searchsorted(packed, nowhere)]
        # Take the integers apart again; equal pairs are now neighbors, and a group begins at each index of `first`
        start = packed.astype(np.int32)
        start &= (1 << bits) - 1
        packed >>= bits
        first = np.concatenate([_FIRST[: len(packed)], (packed[1:] != packed[:-1]).nonzero()[0] + 1])
        pair = packed[first]
        del packed
        if not len(pair):
            return 2, {}
        # The count of a pair is the sum of its words' counts; the floor is the count of the pair number `wanted`
        count = np.add.reduceat(self._weight[start], first, dtype=np.int64)
        enough = int(np.partition(count, -wanted)[-wanted]) if len(count) > wanted else 2
        floor = int(max(2, min(enough, below - 1)))
        after = np.append(first[1:], len(start))
        return floor, {
            divmod(pair[i].item(), size): (count[i].item(), start[first[i] : after[i]].copy())
            for i in np.flatnonzero(count >= floor)
        }

    def count(self, pair: Pair, start: np.ndarray) -> tuple[int, np.ndarray]:
        """Count a pair again: how often it occurs, and the places of `start` that still hold it."""
        row, (left, right) = self._row, pair
        there = row.take(start) == left
        there &= row.take(start + self._width[left]) == right
        start = start[there]
        return int(np.add.reduce(self._weight.take(start))), start

    def merge(self, pair: Pair, start: np.ndarray, made: int, floor: int) -> Iterator[tuple[int, Pair, np.ndarray]]:
        """Write the id `made` for the pair at its places `start`.

        Yields (count, pair, places) for each new pair that occurs at least `floor` times.

        Example: in "aab" (twice) and "ab" (three times), (a, b) at the places 2 and 5 becomes 2. The neighbor before is
        a = 0 at the first place and GAP at the second, the neighbors after are both GAP. So one new pair appears,
        (a, ab), at place 1, twice.

        >>> words = _Words(np.array([GAP, 0, 0, 1, GAP, 0, 1, GAP], np.int32), np.array([2, 3]), size=4)
        >>> [(count, new, places.tolist()) for count, new, places in words.merge((0, 1), np.array([2, 5]), 2, floor=2)]
        [(2, (0, 2), [1])]
        >>> words._row.tolist()
        [-1, 0, 2, 2, -1, 2, 2, -1]
        >>> list(words.merge((0, 2), np.array([1]), 3, floor=2))
        []
        >>> words._row.tolist()
        [-1, 3, -2, 3, -1, 2, 2, -1]
        """
        row, width, (left, right) = self._row, self._width, pair
        if left == right:
            start = _from_the_left(start, width[left])
        # The new symbol covers start … end - 1. The order matters: for a narrow pair these positions coincide
        width[made] = width[left] + width[right]
        middle, end = start + width[left], start + width[made]
        row[middle - 1] = GONE
        row[middle] = GONE
        row[start] = made
        row[end - 1] = made
        self._stays[middle] = False
        weight = self._weight.take(start)
        # One array holds the neighbors before, as ids, and those after, as id + beyond: they are sorted together.
        # If the neighbor after is a new symbol too, that pair is counted there, as the neighbor before.
        beyond = len(width)
        before, after = row.take(start - 1), row.take(end)
        after[after == made] = GONE
        after[after >= 0] += beyond
        neighbor = np.concatenate([before, after])
        # Sort the neighbors that are symbols, and with them the places of the new pairs
        (inside,) = (neighbor >= 0).nonzero()
        if not len(inside):
            return
        inside = inside[neighbor.take(inside).argsort()]
        neighbor = neighbor.take(inside)
        place = np.concatenate([start - width.take(before), start]).take(inside)
        # Equal neighbors form a group, which begins at an index of `first`; its weights add up to the pair's count
        first = np.concatenate([_FIRST, (neighbor[1:] != neighbor[:-1]).nonzero()[0] + 1])
        count = np.add.reduceat(np.concatenate([weight, weight]).take(inside), first, dtype=np.int64)
        (frequent,) = (count >= floor).nonzero()
        first = np.append(first, len(place))
        for other, often, begin, behind in zip(
            neighbor.take(first.take(frequent)).tolist(), count.take(frequent).tolist(),
            first.take(frequent).tolist(), first.take(frequent + 1).tolist(), strict=True,
        ):  # fmt: skip
            yield often, (other, made) if other < beyond else (made, other - beyond), place[begin:behind]


def _from_the_left(start: np.ndarray, width: int) -> np.ndarray:
    """The places of a pair of equal ids that do not overlap, taken from the left: sorted, [kept].

    `width` is the number of positions that one of the two symbols covers.

    Example: aaaa at the positions 1 to 4 has the pair (a, a) at 1, 2 and 3. Those at 1 and 3 are kept: aa aa. A second
    run begins at 7.

    >>> _from_the_left(np.array([7, 2, 1, 3]), 1).tolist()
    [1, 3, 7]
    """
    start = np.sort(start)
    if not (start[1:] - start[:-1] == width).any():
        return start
    # Keep every second place of a run, counted from the index at which the run begins
    index = np.arange(len(start))
    begins_run = np.diff(start, prepend=start[0] - width - 1) != width
    within_run = index - np.maximum.accumulate(np.where(begins_run, index, 0))
    kept: np.ndarray = start[within_run % 2 == 0]
    return kept
