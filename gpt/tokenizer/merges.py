"""Merges applied to words: the merge of the lowest rank comes first, and the leftmost one among equals.

Words come as a row of ids, with GAP before the first, between any two and after the last (gpt/tokenizer/bpe.py). What
is done to them, and why the ids are those of merging one word after the other, one merge after the other:

1. Merges of two symbols of the alphabet whose neighbors cannot interfere are all done at once (`_merge_certain`).
2. Words are then merged side by side: one round does the next merge of every word (`_apply_abreast`).
3. Long words are cut into windows that overlap, and windows are merged side by side (`_apply_in_windows`). A word
   whose windows disagree is merged by itself, with a heap (`_apply_to_one`).
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from gpt.tokenizer.bpe import GAP, GONE, Pair
from gpt.tokenizer.lexicon import UNKNOWN, Numbering

_PLACE_BITS = 9  # bits of a place within a word, below the rank in an entry of the queue
_LONGEST_ABREAST = 256  # symbols of a word; a longer word is cut into windows
_CELLS_ABREAST = 1 << 16  # symbols of the words merged side by side, few enough to stay in the CPU's cache
_FEWEST_ABREAST = 1024  # words merged side by side, as each round takes some time whatever their number
_MOST_IN_32_BITS = (1 << 32 - _PLACE_BITS) - 1  # merges whose ranks leave room for a place, and for UNKNOWN
_SMALL_ALPHABET = 1 << 10  # ids, all pairs of which take 4 MB at most
_NEVER = np.uint16(0xFFFF)  # in a table of ranks: no merge, or one of such a rank or a higher one


class _Certain(NamedTuple):
    """What decides whether two symbols of the alphabet are merged whatever stands around them: uint16 [size + 1]².

    `rank[a, b]` is the rank of the merge of a and b. `taken_left[x, a]` is the lowest rank of a merge that joins a to
    a symbol that ends with x, `taken_right[b, y]` that of one that joins b to a symbol that begins with y.
    """

    rank: np.ndarray
    taken_left: np.ndarray
    taken_right: np.ndarray


class Merges:
    """Merges over an alphabet of `size` ids, ready to be applied.

    Merge number k joins `pairs[k]` into the id `made[k]`; without `made`, into size + k. No pair may occur twice. Both
    may be arrays, int32 [merges, 2] and int32 [merges], which takes less time if there are many.

    Example: "abc" can come about in two ways, as ab c or as a bc.

    >>> merges = Merges(3, [(0, 1), (1, 2), (3, 2), (0, 4)], made=[3, 4, 5, 5])
    >>> merges.apply(np.array([GAP, 0, 1, 2, GAP], np.int32)).tolist()
    [-1, 5, -1]
    """

    def __init__(
        self, size: int, pairs: Sequence[Pair] | np.ndarray = (), made: Sequence[int] | np.ndarray | None = None
    ):
        self.size = size
        left, right = self._left, self._right = np.array(pairs, np.int32).reshape(-1, 2).T
        self._made_by = np.arange(size, size + len(left), dtype=np.int32) if made is None else np.array(made, np.int32)
        self._count = int(max(size, self._made_by.max(initial=-1) + 1))  # of ids
        self._stride = self._count + 1  # keys of pairs stay unique if a symbol is GAP
        self._ranks = Numbering(1, slots=16)  # 16 slots per pair, as most pairs looked up are not in it
        self._ranks.add([self._key(left, right)])
        self._square = self._certain = None
        if size <= _SMALL_ALPHABET:
            self._square, self._certain = self._made_square(min(self._count, _SMALL_ALPHABET)), self._made_certain()
        # An entry of the queue has no sign, so that an UNKNOWN rank, which is -1, makes larger ones than any merge
        self._entry = np.dtype(np.uint32 if len(left) < _MOST_IN_32_BITS else np.uint64)
        self._none = self._entries(np.array([UNKNOWN], np.int32), np.array([0]))[0]

    def __reduce__(self) -> Any:
        """Another process makes the tables sooner than it receives them."""
        return Merges, (self.size, np.stack([self._left, self._right], axis=1), self._made_by)

    @property
    def pairs(self) -> list[Pair]:
        """The pairs that are joined, by rank."""
        return list(zip(self._left.tolist(), self._right.tolist(), strict=True))

    @cached_property
    def _listed(self) -> tuple[dict[int, int], list[int], list[int], list[int]]:
        """For words by themselves: the ranks by key, as `_key` makes it, and lists of `pairs`' two sides and ids."""
        ranks = dict(zip(self._key(self._left, self._right).tolist(), range(len(self._left)), strict=True))
        return ranks, self._left.tolist(), self._right.tolist(), self._made_by.tolist()

    def _made_square(self, size: int) -> np.ndarray:
        """The ranks of all pairs of the first `size` ids, int32 [size + 1]²; the last row and column are GAP's."""
        square = np.full((size + 1, size + 1), UNKNOWN, np.int32)
        (rank,) = ((self._left < size) & (self._right < size)).nonzero()
        square[self._left[rank], self._right[rank]] = rank
        return square

    def _made_certain(self) -> _Certain:
        """The tables of certain merges. Those that make an id beyond `_square` are left out, so that it has all ids."""
        size, left, right, made = self.size, self._left, self._right, self._made_by
        rank, taken_left, taken_right = np.full((3, size + 1, size + 1), _NEVER)
        ranks = np.arange(len(left))
        low = np.minimum(ranks, _NEVER).astype(np.uint16)
        used = np.full(self._count, len(left))  # lowest rank of a merge that has this id as a part
        np.minimum.at(used, left, ranks)
        np.minimum.at(used, right, ranks)
        (some,) = ((left < size) & (right < size) & (made < _SMALL_ALPHABET) & (ranks < used[made])).nonzero()
        rank[left[some], right[some]] = low[some]
        (some,) = (right < size).nonzero()
        np.minimum.at(taken_left, (_ends(self._count, right, made)[left[some]], right[some]), low[some])
        (some,) = (left < size).nonzero()
        np.minimum.at(taken_right, (left[some], _ends(self._count, left, made)[right[some]]), low[some])
        return _Certain(rank, taken_left, taken_right)

    def apply(self, row: np.ndarray) -> np.ndarray:
        """Merge the words of a row, lowest rank first and leftmost first among equals. Returns the new, shorter row.

        Example: the merges ab = 2 and aab = 3 turn "aab ab" into the ids 3 and 2. The words are merged by length: first
        "ab", then "aab". Each id stands at the place of its first symbol; the other places are dropped.

        >>> Merges(2, [(0, 1), (0, 2)]).apply(np.array([GAP, 0, 0, 1, GAP, 0, 1, GAP], np.int32)).tolist()
        [-1, 3, -1, 2, -1]
        """
        if self._certain is not None:
            row = self._merge_certain(row, self._certain)
        is_gap = row == GAP
        (gap,) = is_gap.nonzero()
        start, length = gap[:-1] + 1, np.diff(gap) - 1
        merged, kept = row.copy(), is_gap
        # Short words go side by side with words of about their length, so that little is padded
        by_length = np.argsort(length, kind="stable")
        short = int(np.searchsorted(length[by_length], _LONGEST_ABREAST, side="right"))
        for words in _groups(by_length[:short], length):
            at, ids = self._apply_abreast(row, start[words], length[words])
            merged[at] = ids
            kept[at] = True
        if short < len(length):
            at, ids = self._apply_in_windows(row, start[by_length[short:]], length[by_length[short:]])
            merged[at] = ids
            kept[at] = True
        return merged.compress(kept)

    def _merge_certain(self, row: np.ndarray, certain: _Certain) -> np.ndarray:
        """Do the merges of the alphabet's symbols that are done whatever else is merged. Returns the new row.

        Let a and b be neighbors with the merge of rank r, x the symbol before a, and y the one after b. As long as they
        stand there, no merge of a higher rank than r is next. So a can only be lost to a symbol that ends with x by a
        merge of a rank below r, or of r itself further left; and b to one that begins with y in the same way. If all
        these have higher ranks, a and b will be merged, and it does not matter when: what is made of them could
        only change the order if it had a merge of a rank below r itself, and those that have are not certain.

        Example: with ab = 3 (rank 0), bc = 4 (rank 1) and ca = 5 (rank 2), a and b of "cabc" are merged at once, but
        "bc" and "ca" are not, because a and b may take the b and the a. "bcca" has two certain merges.

        >>> merges = Merges(3, [(0, 1), (1, 2), (2, 0)])
        >>> row = np.array([GAP, 2, 0, 1, 2, GAP, 1, 2, 2, 0, GAP], np.int32)
        >>> merges._merge_certain(row, merges._certain).tolist()
        [-1, 2, 3, 2, -1, 4, 5, -1]
        """
        # The places of pairs in the tables; with GAP = -1, the place is in the last row or column
        pair = row[:-1] * np.int32(self.size + 1)
        pair += row[1:]
        rank = certain.rank.take(pair[1:-1])
        is_certain = rank < certain.taken_left.take(pair[:-2])
        is_certain &= rank < certain.taken_right.take(pair[2:])
        (at,) = is_certain.nonzero()  # the first pair that is looked at is behind the first GAP
        merged, kept = row.copy(), np.ones(len(row), bool)
        merged[at + 1] = self._made_by.take(rank.take(at))
        kept[at + 2] = False
        return merged.compress(kept)

    def _apply_abreast(self, row: np.ndarray, begin: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Merge words of about the same length side by side: (the places at which symbols are left; their ids).

        The words begin at `begin` in the row. Each is a column of a grid, with GAP above it and below it. An entry of
        `queue` is rank << 9 | place if the merge of that rank joins the symbol at that place with the next one, else
        `_none` or more. So the least entry of a column is the next merge of that word, and one round does the next
        merge of every word. `reach` is how many places a symbol covers, at its first place and at its last. Its id is
        at the first, and GONE at the others.

        Example: "aab" and "ab" with the merges ab = 2 (rank 0) and aab = 3 (rank 1). The grid and the queue before each
        round, with `.` for GAP, GONE and no merge:

            ids   queue      ids   queue      ids   queue
            . .    .   .     . .    .  .      . .   . .
            a a    .  0|1    a 2   1|1 .      3 2   . .
            a b   0|2  .     2 .    .  .      . .   . .
            b .    .   .     . .    .  .      . .   . .
            . .    .   .     . .    .  .      . .   . .

        The places of 3 and 2 in the row are 1 and 5.

        >>> row = np.array([GAP, 0, 0, 1, GAP, 0, 1, GAP], np.int32)
        >>> at, ids = Merges(2, [(0, 1), (0, 2)])._apply_abreast(row, np.array([1, 5]), np.array([3, 2]))
        >>> at.tolist(), ids.tolist()
        ([1, 5], [3, 2])
        """
        # The grid [longest + 2, words]; in flat arrays, the symbol below another is `columns` further on
        columns = len(begin)
        line = np.arange(length.max() + 2)[:, None]
        at = np.minimum(begin - 1 + line, begin + length)
        ids = row.take(at)
        reach = np.ones(ids.shape, np.int32)
        queue = np.full(ids.shape, self._none, self._entry)
        queue[:-1] = self._entries(self._first_ranks(ids[:-1], ids[1:]), line[:-1])
        flat_ids, flat_queue, flat_reach = ids.reshape(-1), queue.reshape(-1), reach.reshape(-1)
        while True:
            # The next merge of each word that has one: its place in the word and the id that it makes
            best = queue.min(axis=0)
            (word,) = (best < self._none).nonzero()
            if not len(word):
                break
            best = best.take(word).astype(np.intp)
            place, made = best & ((1 << _PLACE_BITS) - 1), self._made_by.take(best >> _PLACE_BITS)
            # Merge: the right symbol goes, and the new id stands at the place of the left one
            start = place * columns + word
            covered = flat_reach.take(start)
            middle = start + covered * columns
            covered += flat_reach.take(middle)
            end = start + covered * columns
            place_before = place - flat_reach.take(start - columns)
            before = place_before * columns + word
            flat_ids[start] = made
            flat_ids[middle] = GONE
            flat_queue[middle] = self._none
            flat_reach[start] = flat_reach[end - columns] = covered
            # The new symbol makes two new pairs, with the symbol before it and with the one after it
            both = np.concatenate([before, start])
            left, right = np.concatenate([flat_ids.take(before), made]), np.concatenate([made, flat_ids.take(end)])
            flat_queue[both] = self._entries(self._ranks_of(left, right), np.concatenate([place_before, place]))
        stays = (ids.T >= 0).ravel()
        return at.T.ravel().compress(stays), ids.T.ravel().compress(stays)

    def _entries(self, rank: np.ndarray, place: np.ndarray) -> np.ndarray:
        """The entries of the queue for merges of these ranks at these places of their words."""
        entry: np.ndarray = rank.astype(self._entry) << _PLACE_BITS | place.astype(self._entry)
        return entry

    def _ranks_of(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """The ranks of the merges that join these pairs, int32 [n], UNKNOWN if none does."""
        return self._ranks.find([self._key(left, right)])

    def _first_ranks(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """The same for symbols that are not merged but for certain merges, for arrays of any shape."""
        if self._square is None:
            return self._ranks_of(left.ravel(), right.ravel()).reshape(left.shape)
        # GAP's row is the last one, and its column too: GAP is -1, the last index before that of the left symbol's row
        rank: np.ndarray = self._square.take(left * len(self._square) + right)
        return rank

    def _key(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """One integer per pair, uint64 [n]: left * _stride + right. If a side is GAP, no merge has this integer."""
        key = left.astype(np.int64)
        key *= self._stride
        key += right
        return key.view(np.uint64)

    def _apply_in_windows(
        self, row: np.ndarray, begin: np.ndarray, length: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Merge long words: (the places at which symbols are left; their ids). Few words are merged one by one.

        Each word is cut into windows, half of which the next one covers too, and each window is merged by itself. If
        a symbol comes out in two windows at the same places, the result of the word is that of the first window up to
        this symbol, and that of the second one from there on. This is exact because of two facts.

        - Neighbors in the result of a word are the result of merging their own symbols alone: no merge went across
          their outer ends, and the order of the others does not depend on what is beyond.
        - Symbols of which all neighbors are such results are the result of the whole word. Else take the first merge
          that goes across an end of one of them. All merges before were within the symbols, so the two at this end
          would be merged alone, too.

        Example: with a window of 4, a step of 2, and ab = 2, "aaabab" has the windows "aaab" and "abab". Both have
        an ab at the places 3 and 4, so "aa" comes from the first one, and "ab" from the second.

        >>> from unittest.mock import patch
        >>> merges, row = Merges(2, [(0, 1)]), np.array([GAP, 0, 0, 0, 1, 0, 1, GAP], np.int32)
        >>> with patch("gpt.tokenizer.merges._LONGEST_ABREAST", 4):
        ...     at, ids = merges._apply_in_windows(row, np.array([1]), np.array([6]))
        >>> at.tolist(), ids.tolist()
        ([1, 2, 3, 5], [0, 0, 2, 2])
        """
        by_place = np.argsort(begin)
        begin, length = begin[by_place], length[by_place]
        step = _LONGEST_ABREAST // 2
        windows = _Windows.of(begin, length, step)
        # Neighboring windows write to different rows: the ids, and whether a symbol or what is behind it begins there
        ids, edges = np.empty((2, len(row)), np.int32), np.zeros((2, len(row)), bool)
        for parity in range(2):
            every_second = np.arange(parity, len(windows.begin), 2)
            edges[parity, windows.end[every_second]] = True
            for some in _groups(every_second, windows.end - windows.begin):
                place, cut_out, first = windows.cut_out(row, some)
                at, found = self._apply_abreast(cut_out, first, (windows.end - windows.begin)[some])
                ids[parity, place.take(at)] = found
                edges[parity, place.take(at)] = True
        # A symbol is shared by two windows if it has its two edges in both, and none is between
        (edge,) = (edges[0] | edges[1]).nonzero()
        in_both = (edges[0] & edges[1]).take(edge)
        shared = edge[:-1].compress(in_both[:-1] & in_both[1:])
        # From the first shared symbol of two windows on, the second one counts
        second, index = np.unique(np.searchsorted(windows.begin, shared, side="right") - 1, return_index=True)
        counts_from, is_joined = windows.begin.copy(), windows.begin == begin[windows.word]
        counts_from[second], is_joined[second] = shared[index], True
        is_whole = np.ones(len(begin), bool)
        is_whole[windows.word[~is_joined]] = False
        window = np.searchsorted(counts_from, edge, side="right") - 1
        stays = edges[window & 1, edge] & (row.take(edge) != GAP) & is_whole[windows.word[window]]
        edge, window = edge.compress(stays), window.compress(stays)
        places, merged = [edge], [ids[window & 1, edge]]
        for first, count in zip(begin[~is_whole].tolist(), length[~is_whole].tolist(), strict=True):
            merged.append(np.array(self._apply_to_one(row[first : first + count].tolist()), np.int32))
            places.append(np.arange(first, first + len(merged[-1])))
        return np.concatenate(places), np.concatenate(merged)

    def _apply_to_one(self, ids: Sequence[int]) -> list[int]:
        """Merge one word, in O(n log n) of its length, with a heap of the merges that can be done.

        `reach` has how many places a symbol covers, at its first and at its last one.

        Example: with ab = 2 and aab = 3, the word "aab" becomes 3.

        >>> Merges(2, [(0, 1), (0, 2)])._apply_to_one([0, 0, 1])
        [3]
        """
        ranks, lefts, rights, made_by = self._listed
        row, stride = [GAP, *ids, GAP], self._stride
        span, reach = len(row), [1] * len(row)  # rank * span + start sorts like (rank, start), in half the memory
        found = (ranks.get(left * stride + right) for left, right in pairwise(row))
        queue = [rank * span + at for at, rank in enumerate(found) if rank is not None]
        heapify(queue)
        while queue:
            rank, start = divmod(heappop(queue), span)
            middle = start + reach[start]
            if row[start] != lefts[rank] or row[middle] != rights[rank]:  # one of the two has been merged since
                continue
            end, before = middle + reach[middle], start - reach[start - 1]
            made = row[start] = made_by[rank]
            row[middle] = GONE
            reach[start] = reach[end - 1] = end - start
            if (new := ranks.get(row[before] * stride + made)) is not None:
                heappush(queue, new * span + before)
            if (new := ranks.get(made * stride + row[end])) is not None:
                heappush(queue, new * span + start)
        return [id for id in row if id >= 0]


class _Windows(NamedTuple):
    """The windows of long words: where each begins and ends in the row, and the number of its word, intp [windows]."""

    begin: np.ndarray
    end: np.ndarray
    word: np.ndarray

    @classmethod
    def of(cls, begin: np.ndarray, length: np.ndarray, step: int) -> "_Windows":
        """Windows of two steps, one at each step. The last one of a word may be shorter.

        >>> windows = _Windows.of(np.array([1, 9]), np.array([7, 5]), step=2)
        >>> windows.begin.tolist(), windows.end.tolist(), windows.word.tolist()
        ([1, 3, 5, 9, 11], [5, 7, 8, 13, 14], [0, 0, 0, 1, 1])
        """
        count = (length - 1) // step
        word = np.repeat(np.arange(len(begin)), count)
        number = np.arange(len(word)) - np.repeat(np.cumsum(count) - count, count)
        first = begin[word] + step * number
        return cls(first, np.minimum(first + 2 * step, (begin + length)[word]), word)

    def cut_out(self, row: np.ndarray, some: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Some windows as the words of a row: (the place in `row` of each symbol; their row; where each begins in it).

        >>> windows = _Windows.of(np.array([1]), np.array([6]), step=2)
        >>> place, cut_out, first = windows.cut_out(np.array([GAP, 10, 11, 12, 13, 14, 15, GAP]), np.array([0, 1]))
        >>> cut_out.tolist(), first.tolist(), place[1:5].tolist()
        ([-1, 10, 11, 12, 13, -1, 12, 13, 14, 15, -1], [1, 6], [1, 2, 3, 4])
        """
        size = self.end[some] - self.begin[some] + 1
        behind = np.cumsum(size)
        place = np.repeat(self.begin[some] - (behind - size), size)
        place += np.arange(len(place))
        place = np.append(0, place)
        cut_out = row.take(place)
        cut_out[0] = cut_out[behind] = GAP
        return place, cut_out, behind - size + 1


def _groups(words: np.ndarray, length: np.ndarray) -> Iterator[np.ndarray]:
    """Words in groups that are merged side by side; all have about `_CELLS_ABREAST` symbols, unless they are few.

    >>> [len(group) for group in _groups(np.arange(5000), np.full(5000, 30))]
    [2048, 2048, 904]
    """
    first = 0
    while first < len(words):
        count = max(_FEWEST_ABREAST, _CELLS_ABREAST // int(length[words[first]] + 2))
        yield words[first : first + count]
        first += count


def _ends(count: int, side: np.ndarray, made: np.ndarray) -> np.ndarray:
    """The symbol of the alphabet with which each of `count` ids begins if `side` is the merges' left sides; or ends.

    Merge number k has the id side[k] at this end and makes made[k].

    Example: ab = 3 and abc = 4 end with b and c.

    >>> _ends(5, side=np.array([1, 2]), made=np.array([3, 4])).tolist()
    [0, 1, 2, 1, 2]
    """
    end = np.arange(count)
    end[made] = side
    while not np.array_equal(end, further := end.take(end)):
        end = further
    return end
