"""Byte-pair encoding, the algorithm alone: learn merges from counted words, apply merges to a word.

Symbols are ids. The alphabet has the ids 0 … size − 1, and merge number k joins a pair of ids into the id size + k.
So an id made by a merge is also its rank, and the ids of a pair are always smaller than the id it becomes.

Both directions keep their symbols in one flat row and never move them: an id stands at the first and at the last
position that it covers, and `width` says how many those are. The neighbors of a symbol are then found by adding and
subtracting, merging costs the same in a word of five characters and in one of five million, and nothing is rescanned.
"""

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise

Pair = tuple[int, int]
GONE = -1  # inside a merged symbol, and between words


def learn(
    words: Iterable[tuple[Sequence[int], int]],
    alphabet: Sequence[str],
    most: int,
    joinable: Callable[[str, str], bool] = lambda left, right: True,
    progress: Callable[[int, int], None] | None = None,
) -> list[Pair]:
    """Merge the most frequent pair again and again (Sennrich et al. 2016); return the pairs in that order.

    `words` are distinct words as (ids, how often the word occurs), in any order; `alphabet[id]` is the string of an id.
    Learning ends after `most` merges or when no pair occurs twice. Of equally frequent pairs the one with the smaller
    left id comes first, then the smaller right id. A pair is passed over for good if its string exists already (two
    ids would look alike) or if `joinable(left string, right string)` is false.
    `progress` is called as (merges done, most) after every merge.
    """
    row, weight = [GONE], [0]
    for ids, count in words:
        row += ids
        row.append(GONE)
        weight += [count] * (len(ids) + 1)

    counts: dict[Pair, int] = defaultdict(int)
    places: dict[Pair, array] = defaultdict(lambda: array("q"))  # where a pair began; some are merged away since
    for at, pair in enumerate(pairwise(row)):
        if GONE not in pair:
            counts[pair] += weight[at]
            places[pair].append(at)

    pieces, known, width = list(alphabet), set(alphabet), [1] * len(alphabet)
    merges: list[Pair] = []
    queue = [(-count, pair) for pair, count in counts.items() if count > 1]
    heapify(queue)
    while queue and len(merges) < most:
        expected, pair = heappop(queue)
        if counts[pair] != -expected:  # it has lost places to other merges: back in line
            if counts[pair] > 1:
                heappush(queue, (-counts[pair], pair))
            continue
        left, right = pair
        piece = pieces[left] + pieces[right]
        if piece in known or not joinable(pieces[left], pieces[right]):
            continue

        made = len(pieces)
        pieces.append(piece)
        known.add(piece)
        width.append(width[left] + width[right])
        merges.append(pair)

        born = set()
        for start in places.pop(pair):  # ascending, so that aaa becomes aa a
            middle = start + width[left]
            if row[start] != left or row[middle] != right:
                continue
            end = start + width[made]
            before, after, count = row[start - 1], row[end], weight[start]
            row[middle - 1] = row[middle] = GONE
            row[start] = row[end - 1] = made
            if before != GONE:
                counts[before, left] -= count
                counts[before, made] += count
                places[before, made].append(start - width[before])
                born.add((before, made))
            if after != GONE:
                counts[right, after] -= count
                counts[made, after] += count
                places[made, after].append(start)
                born.add((made, after))
        del counts[pair]
        for pair in born:
            if counts[pair] > 1:
                heappush(queue, (-counts[pair], pair))
            else:  # only this merge could make more of them
                del places[pair]
        if progress:
            progress(len(merges), most)
    return merges


class Merges:
    """Learned merges over an alphabet of `size` ids, ready to be applied."""

    def __init__(self, size: int, pairs: Iterable[Pair] = ()):
        self.size = size
        self.pairs = list(pairs)
        self._made = {pair: size + rank for rank, pair in enumerate(self.pairs)}
        self._width = [1] * size
        for left, right in self.pairs:
            self._width.append(self._width[left] + self._width[right])

    def apply(self, ids: Sequence[int]) -> list[int]:
        """Merge a word's ids, lowest rank first and leftmost first among equals. O(n log n) in the word's length."""
        made_of, width, size = self._made, self._width, self.size
        row = [GONE, *ids, GONE]
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
