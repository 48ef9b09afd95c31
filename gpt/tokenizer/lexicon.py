"""Distinct byte strings numbered 0, 1, 2 …, and NumPy's way to ask for the numbers of a great many at once.

A word of a text is no Python string here: it is a place in the text's bytes and a length. Eight bytes make one
unsigned integer, so most words are compared and hashed as one or two integers, all words of a block side by side.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

MARK = b"\xff"  # no byte of UTF-8; stands for the end-of-text mark in a text, and behind each of several words
UNKNOWN = -1
MARGIN = 8  # bytes that must follow the last string, as integers are read

_LANES = 4  # integers of a key; a longer string is looked up in a dictionary
_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)
_PADDING = np.array([0xFFFFFFFFFFFFFFFF << 8 * length & 0xFFFFFFFFFFFFFFFF for length in range(8)], np.uint64)
_NO_NUMBER = 1 << 48  # no dictionary gets so long, and it still fits above a 0xFF
_NONE = np.zeros(0, np.intp)
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio


class Numbering:
    """Keys of up to `lanes` unsigned 64-bit integers → 0, 1, 2 … by open addressing (Knuth, volume 3, section 6.4).

    Keys come as one array per lane, uint64 [n]. They may differ in how many lanes they have, as long as no key is the
    beginning of another. There are at least `slots` slots for each key.
    """

    def __init__(self, lanes: int, slots: int):
        self.count = 0
        self._slots_per_key = slots
        self._keys = np.empty((lanes, 1), np.uint64)
        self._hash = np.empty(1, np.uint64)
        self._slots = np.full(2, UNKNOWN, np.int32)

    def find(self, keys: Sequence[np.ndarray]) -> np.ndarray:
        """The numbers of keys, int32 [n], UNKNOWN for a key without one.

        Several threads may ask at a time, as long as nothing is added.
        """
        slot = self._slot(_hashed(keys))
        number = self._slots[slot]
        (elsewhere,) = (self._differ(number, keys) & (number != UNKNOWN)).nonzero()
        while len(elsewhere):
            slot[elsewhere] = self._next(slot[elsewhere])
            number[elsewhere] = there = self._slots[slot[elsewhere]]
            differ = self._differ(there, [lane[elsewhere] for lane in keys]) & (there != UNKNOWN)
            elsewhere = elsewhere[differ]
        return number

    def add(self, keys: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of keys, int32 [n], and which of the keys are new, by number: one place for each, intp [new].

        Keys that are all new and different get their numbers in their order.
        """
        before, behind = self.count, self.count + len(keys[0])
        self._reserve(behind)
        self._keys[:, before:behind] = _ONES
        for lane, key in zip(self._keys, keys, strict=False):
            lane[before:behind] = key
        self._hash[before:behind] = _hashed(keys)
        number, slot = self._settle(np.arange(before, behind, dtype=np.int32))
        is_new = number == np.arange(before, behind)
        (new,) = is_new.nonzero()
        self.count = before + len(new)
        self._keys[:, before : self.count] = self._keys[:, before + new]
        self._hash[before : self.count] = self._hash[before + new]
        self._slots[slot[new]] = np.arange(before, self.count)
        renumbered = before - 1 + np.cumsum(is_new, dtype=np.int32)
        added = number >= before
        number[added] = renumbered[number[added] - before]
        return number, new

    def _reserve(self, count: int) -> None:
        """Make room for `count` keys."""
        if count > len(self._hash):
            room = max(count, 2 * len(self._hash))
            keys, hash = np.empty((len(self._keys), room), np.uint64), np.empty(room, np.uint64)
            keys[:, : self.count] = self._keys[:, : self.count]
            hash[: self.count] = self._hash[: self.count]
            self._keys, self._hash = keys, hash
        wanted = self._slots_per_key * count
        if wanted > len(self._slots):
            self._slots = np.full(1 << wanted.bit_length(), UNKNOWN, np.int32)
            self._settle(np.arange(self.count, dtype=np.int32))

    def _settle(self, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give each number the first free slot on its way; what is there in the end, itself or its equal, and where."""
        slot = self._slot(self._hash[number])
        found = number.copy()
        rest, at = np.arange(len(number)), slot
        while len(rest):
            (free,) = (self._slots[at] == UNKNOWN).nonzero()
            self._slots[at[free]] = number[rest[free]]  # of several that want a slot, one gets it
            found[rest] = there = self._slots[at]
            (other,) = (there != number[rest]).nonzero()
            other = other[self._differ(there[other], self._keys[:, number[rest[other]]])]
            rest, at = rest[other], self._next(at[other])
            slot[rest] = at
        return found, slot

    def _differ(self, number: np.ndarray, keys: Sequence[np.ndarray]) -> np.ndarray:
        differ = self._keys[0][number] != keys[0]
        for lane, key in zip(self._keys[1:], keys[1:], strict=False):
            differ |= lane[number] != key
        return differ

    def _slot(self, hash: np.ndarray) -> np.ndarray:
        return (hash >> np.uint64(65 - len(self._slots).bit_length())).view(np.int64)

    def _next(self, slot: np.ndarray) -> np.ndarray:
        return (slot + 1) & (len(self._slots) - 1)


def _hashed(keys: Sequence[np.ndarray]) -> np.ndarray:
    """uint64 [n], of which the upper bits are the best."""
    hash = keys[0] * _FACTOR
    for key in keys[1:]:
        hash ^= hash >> np.uint64(32)  # else the last bytes of several keys, which only the upper bits see, cancel
        hash ^= key
        hash *= _FACTOR
    hash ^= hash >> np.uint64(32)
    hash *= _FACTOR
    return hash


class Strings(NamedTuple):
    """Byte strings within a longer one, `data`: where each begins and how long it is, intp [n].

    MARGIN bytes follow the last string. No string is empty, and none contains 0xFF, but MARK is one by itself.
    """

    data: bytes
    start: np.ndarray
    length: np.ndarray

    def take(self, index: np.ndarray) -> "Strings":
        """Those at an index or where a mask is true."""
        return Strings(self.data, self.start[index], self.length[index])

    def joined(self) -> bytes:
        """The strings one after the other, each with MARK behind it."""
        length = self.length + 1
        end = np.cumsum(length)
        if not len(end):
            return b""
        place = np.repeat(self.start - (end - length), length)
        place += np.arange(end[-1])
        joined = np.frombuffer(self.data, np.uint8)[place]
        joined[end - 1] = MARK[0]
        return joined.tobytes()


class Lexicon:
    """Byte strings → 0, 1, 2 …

    The order among those added together is no simple one (shorter ones tend to come first), but depends on nothing
    but what has been added, and together with what.
    """

    def __init__(self):
        self._numbering = Numbering(_LANES, slots=2)
        self._long: dict[bytes, int] = {}  # strings that have more than _LANES lanes

    def __len__(self) -> int:
        return self._numbering.count

    def find(self, strings: Strings) -> np.ndarray:
        """The numbers of strings, int32 [n], UNKNOWN for those without one.

        Several threads may ask at a time, as long as nothing is added.
        """
        number = np.empty(len(strings.start), np.int32)
        for some, keys in self._keys(strings, lambda string: self._long.get(string, _NO_NUMBER)):
            number[some] = self._numbering.find(keys)
        return number

    def add(self, strings: Strings) -> tuple[np.ndarray, Strings]:
        """The numbers of strings, int32 [n], and the new ones among them, by number."""
        number = np.empty(len(strings.start), np.int32)
        new = [_NONE]
        for some, keys in self._keys(strings, lambda string: self._long.setdefault(string, len(self._long))):
            number[some], first = self._numbering.add(keys)
            new.append(some[first])
        return number, strings.take(np.concatenate(new))

    @staticmethod
    def _keys(strings: Strings, number: Callable[[bytes], int]) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        """Strings with equally many lanes: their places, intp [n], and their keys, uint64 [n] per lane.

        A string fills its last lane up with 0xFF, at least one, so that no key is the beginning of another. A long
        string's only lane is what `number` says of it, behind a 0xFF.
        """
        data, start, length = strings
        integers = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))
        lanes = np.minimum(length >> 3, _LANES).astype(np.uint8)
        for last in range(_LANES):
            (some,) = (lanes == last).nonzero()
            if len(some):
                begin = start[some]
                keys = [integers[begin + 8 * lane] for lane in range(last + 1)]
                keys[last] |= _PADDING[length[some] & 7]
                yield some, keys
        (some,) = (lanes == _LANES).nonzero()
        if len(some):
            begins, ends = start[some].tolist(), (start[some] + length[some]).tolist()
            long = [number(data[begin:end]) for begin, end in zip(begins, ends, strict=True)]
            yield some, [np.array(long, np.uint64) << np.uint64(8) | np.uint64(MARK[0])]
