"""Byte-pair encoding, the algorithm alone: learn merges from counted words, apply merges to words.

Symbols are ids. The alphabet has the ids 0 … size − 1, and merge number k joins a pair of ids into the id size + k.
So an id made by a merge is also its rank, and the ids of a pair are always smaller than the id it becomes.

Words come as one row of ids, int32 [n], with GAP before the first word, between any two and after the last. NumPy
then works on many words at once, and what it is called for is a merge (in learning) or a round of merges (in
applying), never a word.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise

import numpy as np

from gpt.errors import UserError
from gpt.tokenizer.lexicon import UNKNOWN, Numbering

Pair = tuple[int, int]
GAP = -1  # between words
GONE = -2  # inside a merged symbol

_PLACE_BITS = 7
_LONG = (1 << _PLACE_BITS) - 2  # symbols; a longer word is merged by itself
_ABREAST = 4096  # words, so that they stay in the cache
_AT_ONCE = 1000  # pairs that are looked at first
_PART = 1 << 20  # positions
_NEVER = np.iinfo(np.int64).max  # the place in the queue of a pair that no merge joins


def learn(
    row: np.ndarray,
    counts: np.ndarray,
    alphabet: Sequence[str],
    most: int,
    joinable: Callable[[str, str], bool] = lambda left, right: True,
    progress: Callable[[int, int], None] | None = None,
) -> list[Pair]:
    """Merge the most frequent pair again and again (Sennrich et al. 2016); return the pairs in that order.

    `row` holds distinct words in any order and is written over, `counts` (int64 [words]) how often each occurs;
    `alphabet[id]` is the string of an id. Learning ends after `most` merges or when no pair occurs twice. Of equally
    frequent pairs the one with the smaller left id comes first, then the smaller right id. A pair is passed over for
    good if its string exists already (two ids would look alike) or if `joinable(left string, right string)` is false.
    `progress` is called as (merges done, most) after every merge.

    Once the younger of its ids has been made, a pair's count can only fall. So a count in the queue is a bound: the
    pair that comes first is counted again, and goes back in line if it has lost places. And as no merge makes a pair
    more frequent than its own, rare pairs can wait: the queue holds those that occur at least `floor` times, and
    when it is empty, the words are searched again with a lower floor.
    """
    most = min(most, len(row))  # each merge takes symbols away, so that memory follows the text
    words = _Words(row, counts, len(alphabet) + most)
    pieces, known = list(alphabet), set(alphabet)
    merges: list[Pair] = []
    floor = math.inf
    while floor > 2 and len(merges) < most:
        floor, places = words.frequent(len(pieces), floor, max(_AT_ONCE, (most - len(merges)) // 2))
        queue = [(-count, pair) for pair, (count, _) in places.items()]
        heapify(queue)
        while queue and len(merges) < most:
            bound, pair = heappop(queue)
            count, start = words.count(pair, places.pop(pair)[1])
            if count < -bound:
                if count >= floor:
                    places[pair] = count, start
                    heappush(queue, (-count, pair))
                continue
            left, right = pair
            piece = pieces[left] + pieces[right]
            if piece in known or not joinable(pieces[left], pieces[right]):
                continue
            for count, new, where in words.merge(pair, start, len(pieces), floor):
                places[new] = count, where
                heappush(queue, (-count, new))
            pieces.append(piece)
            known.add(piece)
            merges.append(pair)
            if progress:
                progress(len(merges), most)
        words.close_up()
    return merges


class _Words:
    """The words of a row while pairs are merged in them. No symbol moves: an id stands at the first and at the last
    position that it covers, and `width` says how many those are, so that neighbors are found by adding and
    subtracting, and the places of a pair remain where they are.
    """

    def __init__(self, row: np.ndarray, counts: np.ndarray, size: int):
        counts = np.append(counts, 0)
        counts = counts.astype(np.min_scalar_type(counts.max()))
        self._row = row
        self._weight = np.repeat(counts, np.diff(np.flatnonzero(row == GAP), append=len(row)))  # [n], of the word
        self._stays = np.ones(len(row), bool)  # what begins no symbol goes when the row closes up
        self._width = np.ones(size, np.int32)

    def close_up(self) -> None:
        """Let every symbol cover one position again."""
        self._row = self._row[self._stays]
        self._weight = self._weight[self._stays]
        self._stays = np.ones(len(self._row), bool)
        self._width[:] = 1

    def frequent(self, size: int, below: float, wanted: int) -> tuple[int, dict[Pair, tuple[int, np.ndarray]]]:
        """Of a row that is closed up: a floor under `below`, and all pairs that reach it with count and places.

        The floor is such that about `wanted` pairs do.
        """
        row = self._row
        # Sorted with its place in one integer, a pair needs half the memory that an argsort wants, and less time
        bits = len(row).bit_length()
        if bits > 31 or 2 * size.bit_length() + bits > 63:
            raise UserError("the text has too many distinct words for a vocabulary of this size: train on a part of it")
        packed = row[:-1].astype(np.int64)
        packed *= size
        packed += row[1:]
        packed <<= bits
        for at in range(0, len(packed), _PART):
            packed[at : at + _PART] += np.arange(at, min(at + _PART, len(packed)))
        packed[(row[:-1] == GAP) | (row[1:] == GAP)] = nowhere = np.iinfo(np.int64).max
        packed.sort()
        packed = packed[: np.searchsorted(packed, nowhere)]
        start = packed.astype(np.int32)
        start &= (1 << bits) - 1
        packed >>= bits
        first = np.concatenate([_FIRST[: len(packed)], (packed[1:] != packed[:-1]).nonzero()[0] + 1])
        pair = packed[first]
        del packed
        if not len(pair):
            return 2, {}
        count = np.add.reduceat(self._weight[start], first, dtype=np.int64)
        floor = np.partition(count, -wanted)[-wanted] if len(count) > wanted else 2
        floor = max(2, min(int(floor), below - 1))
        after = np.append(first[1:], len(start))
        return floor, {
            divmod(pair[i].item(), size): (count[i].item(), start[first[i] : after[i]].copy())
            for i in np.flatnonzero(count >= floor)
        }

    def count(self, pair: Pair, start: np.ndarray) -> tuple[int, np.ndarray]:
        """How often a pair occurs, and those places of `start` where it still does."""
        row, (left, right) = self._row, pair
        there = row.take(start) == left
        there &= row.take(start + self._width[left]) == right
        start = start[there]
        return int(np.add.reduce(self._weight.take(start))), start

    def merge(self, pair: Pair, start: np.ndarray, made: int, floor: int) -> Iterator[tuple[int, Pair, np.ndarray]]:
        """Put `made` for the pair at its places; (count, pair, places) of each new pair whose count reaches `floor`."""
        row, width, (left, right) = self._row, self._width, pair
        if left == right:
            start = _from_the_left(start, width[left])
        width[made] = width[left] + width[right]
        middle, end = start + width[left], start + width[made]
        row[middle - 1] = GONE
        row[middle] = GONE
        row[start] = made
        row[end - 1] = made
        self._stays[middle] = False
        weight = self._weight.take(start)
        # Pairs with the neighbors before and, as numbers from `beyond` on, with those after: sorted and counted as one
        beyond = len(width)
        before, after = row.take(start - 1), row.take(end)
        after[after == made] = GONE  # that pair counts where it is one with the neighbor before
        after[after >= 0] += beyond
        neighbor = np.concatenate([before, after])
        (inside,) = (neighbor >= 0).nonzero()
        if not len(inside):
            return
        inside = inside[neighbor.take(inside).argsort()]
        neighbor = neighbor.take(inside)
        place = np.concatenate([start - width.take(before), start]).take(inside)
        first = np.concatenate([_FIRST, (neighbor[1:] != neighbor[:-1]).nonzero()[0] + 1])
        count = np.add.reduceat(np.concatenate([weight, weight]).take(inside), first, dtype=np.int64)
        (frequent,) = (count >= floor).nonzero()
        first = np.append(first, len(place))
        for other, often, begin, end in zip(
            neighbor.take(first.take(frequent)).tolist(), count.take(frequent).tolist(),
            first.take(frequent).tolist(), first.take(frequent + 1).tolist(), strict=True,
        ):  # fmt: skip
            yield often, (other, made) if other < beyond else (made, other - beyond), place[begin:end]


_FIRST = np.zeros(1, np.intp)


def _from_the_left(start: np.ndarray, width: int) -> np.ndarray:
    """Places of a pair of equal ids, less those that overlap: aaa becomes aa a."""
    start = np.sort(start)
    if not (start[1:] - start[:-1] == width).any():
        return start
    index = np.arange(len(start))
    begins_run = np.diff(start, prepend=start[0] - width - 1) != width
    return start[(index - np.maximum.accumulate(np.where(begins_run, index, 0))) % 2 == 0]


class Merges:
    """Learned merges over an alphabet of `size` ids, ready to be applied."""

    def __init__(self, size: int, pairs: Iterable[Pair] = ()):
        self.size = size
        self.pairs = list(pairs)
        self._made = {pair: size + rank for rank, pair in enumerate(self.pairs)}
        self._width = [1] * size
        for left, right in self.pairs:
            self._width.append(self._width[left] + self._width[right])
        self._widths = np.array([*self._width, 1])  # as GAP, -1, has a width of 1
        self._stride = size + len(self.pairs) + 1  # with GAP, which is -1, the key of a pair is no other's
        self._ranks = Numbering(1, slots=16)  # most pairs that are asked for are in no merge
        self._ranks.add([self._key(*np.array(self.pairs, np.int32).reshape(-1, 2).T)])

    def apply(self, row: np.ndarray) -> np.ndarray:
        """Merge in each word of a row, lowest rank first and leftmost first among equals; the row of what is left."""
        gap = np.flatnonzero(row == GAP)
        start, length = gap[:-1] + 1, np.diff(gap) - 1
        merged, kept = row.copy(), row == GAP
        by_length = np.argsort(length, kind="stable")
        short = np.searchsorted(length[by_length], _LONG, side="right")
        for first in range(0, short, _ABREAST):
            words = by_length[first : min(first + _ABREAST, short)]
            ids, count = self._apply_abreast(row, start[words], length[words])
            at = np.repeat(start[words] - (np.cumsum(count) - count), count) + np.arange(len(ids))
            merged[at] = ids
            kept[at] = True
        for word in by_length[short:].tolist():
            at = start[word]
            ids = self._apply_to_one(row[at : at + length[word]].tolist())
            merged[at : at + len(ids)] = ids
            kept[at : at + len(ids)] = True
        return merged[kept]

    def _apply_abreast(self, row: np.ndarray, start: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Merge in words of about the same length: their ids one after the other, and how many each word has.

        Each word is a column, with GAP above and below it. `queue` holds where a pair begins its rank and its place
        in one number, and the least number of a column is the pair that is next in that word. A round merges it in
        every word.
        """
        columns = len(start)
        place = np.arange(length.max() + 2)[:, None]
        ids = row[np.minimum(start - 1 + place, start + length)]
        stays = ids != GAP
        queue = np.full(ids.shape, _NEVER)
        flat_ids, flat_queue, flat_stays = ids.reshape(-1), queue.reshape(-1), stays.reshape(-1)
        place = np.repeat(place[:-1], columns)
        flat_queue[:-columns] = self._queued(flat_ids[:-columns], flat_ids[columns:], place)
        width = self._widths
        while True:
            best = queue.min(axis=0)
            (word,) = (best < _NEVER).nonzero()
            if not len(word):
                break
            best = best[word]
            place, made = best & ((1 << _PLACE_BITS) - 1), self.size + (best >> _PLACE_BITS)
            start = place * columns + word
            middle = start + width[flat_ids[start]] * columns
            end = start + width[made] * columns
            before, after = flat_ids[start - columns], flat_ids[end]
            flat_stays[middle] = False
            flat_queue[middle] = _NEVER
            flat_ids[start] = flat_ids[end - columns] = made
            place_before = place - width[before]
            both = np.concatenate([place_before * columns + word, start])
            flat_queue[both] = self._queued(
                np.concatenate([before, made]), np.concatenate([made, after]), np.concatenate([place_before, place])
            )
        return ids.T[stays.T], stays.sum(axis=0)

    def _queued(self, left: np.ndarray, right: np.ndarray, place: np.ndarray) -> np.ndarray:
        rank = self._ranks.find([self._key(left, right)])
        return np.where(rank == UNKNOWN, _NEVER, rank.astype(np.int64) << _PLACE_BITS | place)

    def _key(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        key = left.astype(np.int64)
        key *= self._stride
        key += right
        return key.view(np.uint64)

    def _apply_to_one(self, ids: Sequence[int]) -> list[int]:
        """O(n log n) in the word's length."""
        made_of, width, size = self._made, self._width, self.size
        row = [GAP, *ids, GAP]
        span = len(row)  # made * span + start sorts like (made, start), in half the memory
        queue = [made_of[pair] * span + at for at, pair in enumerate(pairwise(row)) if pair in made_of]
        heapify(queue)
        while queue:
            made, start = divmod(heappop(queue), span)
            left, right = self.pairs[made - size]
            middle, end = start + width[left], start + width[made]
            if row[start] != left or row[middle] != right:  # one of the two has been merged since
                continue
            before, after = row[start - 1], row[end]
            row[middle - 1] = row[middle] = GONE
            row[start] = row[end - 1] = made
            if (before, made) in made_of:
                heappush(queue, made_of[before, made] * span + start - width[before])
            if (made, after) in made_of:
                heappush(queue, made_of[made, after] * span + start)
        merged, at = [], 1
        while at <= len(ids):
            merged.append(row[at])
            at += width[row[at]]
        return merged
