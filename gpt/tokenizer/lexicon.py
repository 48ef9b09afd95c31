"""Distinct byte strings numbered 0, 1, 2 …: NumPy looks up the numbers of all words of a block at once.

A word of a text is not a Python string here, but a place in the text's bytes and a length. Eight bytes make one
unsigned integer, so most words are compared and hashed as one or two integers, all words of a block side by side.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

MARK = b"\xff"  # byte that UTF-8 never has: the end-of-text mark within a text, and the end of each of several words
UNKNOWN = -1  # number of a string that has none
MARGIN = 8  # bytes that must follow the last string, because strings are read eight bytes at a time

_LANES = 4  # 64-bit integers of the longest key; a longer string is looked up in a dictionary
_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)  # contents of a lane that a key does not have
# Masks, by the bytes that a string has in its last lane, that set all other bytes of that lane to 0xFF
_PADDING = np.array([0xFFFFFFFFFFFFFFFF << 8 * length & 0xFFFFFFFFFFFFFFFF for length in range(8)], np.uint64)
_ADDED_AT_ONCE = 1 << 16  # strings that are added before the others are looked up again
_NO_NUMBER = 1 << 48  # number of a long string that the dictionary lacks: larger than any, and << 8 still fits
_NONE = np.zeros(0, np.intp)  # array of no places, so that there is always something to concatenate
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # factor of the hash: 2^64 over the golden ratio


class Numbering:
    """Keys of up to `lanes` unsigned 64-bit integers → 0, 1, 2 … by open addressing (Knuth, volume 3, section 6.4).

    Keys come as one array per lane, uint64 [n]. They may differ in how many lanes they have, as long as no key is the
    beginning of another. There are at least `slots` slots for each key: the larger this is, the fewer steps a search
    takes, and the more memory the table.

    Example: a key gets the next number when it is added for the first time. Among equal keys in one call the last
    one counts, so 90 at index 1 is number 0, and 70 at index 2 is number 1.

    >>> numbering = Numbering(lanes=1, slots=2)
    >>> number, new = numbering.add([np.array([70, 90, 70], np.uint64)])
    >>> number.tolist(), new.tolist()
    ([1, 0, 1], [1, 2])
    >>> numbering.find([np.array([90, 80], np.uint64)]).tolist()
    [0, -1]
    """

    def __init__(self, lanes: int, slots: int):
        self.count = 0
        self._slots_per_key = slots
        self._keys = np.empty((lanes, 1), np.uint64)
        self._hash = np.empty(1, np.uint64)
        self._slots = np.full(2, UNKNOWN, np.int32)

    def find(self, keys: Sequence[np.ndarray]) -> np.ndarray:
        """The numbers of keys, int32 [n], UNKNOWN for a key without one.

        Several threads may call this at the same time, as long as nothing is added.

        Example: with the slots [UNKNOWN, 0, 1, UNKNOWN], a key whose hash leads to slot 1 but which differs from key 0
        goes on to slot 2. If it is key 1, its number is 1. If not, it goes on to slot 3, which is free: UNKNOWN.
        """
        # Most keys find themselves or a free slot at once
        slot = self._slot(_hashed(keys))
        number: np.ndarray = self._slots[slot]
        (elsewhere,) = (self._differ(number, keys) & (number != UNKNOWN)).nonzero()
        # The others go on from slot to slot
        while len(elsewhere):
            slot[elsewhere] = self._next(slot[elsewhere])
            number[elsewhere] = there = self._slots[slot[elsewhere]]
            differ = self._differ(there, [lane[elsewhere] for lane in keys]) & (there != UNKNOWN)
            elsewhere = elsewhere[differ]
        return number

    def add(self, keys: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Number the keys: (their numbers, int32 [n]; the index of each new key, by number, intp [new]).

        Keys that are all new and different get their numbers in their order.

        Example: three keys are known, and [90, 90, 70, 80] are added, of which 70 has the number 1. For now they get
        the numbers 3, 4, 5 and 6. Only the last of the two 90s gets a slot, so `_settle` finds the numbers
        [4, 4, 1, 6]. The new keys are those that find their own number, 4 and 6. Moved up, they become 3 and 4.

        >>> numbering = Numbering(lanes=1, slots=2)
        >>> known = numbering.add([np.array([60, 70, 75], np.uint64)])
        >>> [array.tolist() for array in numbering.add([np.array([90, 90, 70, 80], np.uint64)])]
        [[3, 3, 1, 4], [1, 3]]
        """
        # Give every key a number and a slot as if all were new
        before, behind = self.count, self.count + len(keys[0])
        self._reserve(behind)
        self._keys[:, before:behind] = _ONES
        for lane, key in zip(self._keys, keys, strict=False):
            lane[before:behind] = key
        self._hash[before:behind] = _hashed(keys)
        number, slot = self._settle(np.arange(before, behind, dtype=np.int32))
        # Those that got a slot are new: move them up, so that their numbers have no gaps
        is_new = number == np.arange(before, behind)
        (new,) = is_new.nonzero()
        self.count = before + len(new)
        self._keys[:, before : self.count] = self._keys[:, before + new]
        self._hash[before : self.count] = self._hash[before + new]
        self._slots[slot[new]] = np.arange(before, self.count)
        # The numbers of all keys follow
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
        """Insert the keys that have these numbers by linear probing: (found, int32 [n]; slot, intp [n]).

        `found` is the number in the slot at which a key's search has ended: its own, or that of an equal key.

        Example: the keys 0 and 2 are equal, and key 1 has the same first slot, say 5. All three write their number into
        it and the last one, 2, stays. Key 0 finds its equal there and is done. Key 1 finds another key, goes on and
        gets slot 6. So `found` is [2, 1, 2] and `slot` [5, 6, 5].

        >>> numbering = Numbering(lanes=1, slots=2)
        >>> numbering._slots = np.full(8, UNKNOWN, np.int32)
        >>> numbering._keys = np.array([[70, 90, 70]], np.uint64)
        >>> numbering._hash = np.array([5 << 61] * 3, np.uint64)  # the upper bits are the slot
        >>> [array.tolist() for array in numbering._settle(np.arange(3, dtype=np.int32))]
        [[2, 1, 2], [5, 6, 5]]
        """
        slot = self._slot(self._hash[number])
        found = number.copy()
        rest, at = np.arange(len(number)), slot
        while len(rest):
            # Take the slots that are free
            (free,) = (self._slots[at] == UNKNOWN).nonzero()
            self._slots[at[free]] = number[rest[free]]  # if several keys want the same slot, one gets it
            found[rest] = there = self._slots[at]
            # Keys that find neither themselves nor an equal go on to the next slot
            (other,) = (there != number[rest]).nonzero()
            other = other[self._differ(there[other], list(self._keys[:, number[rest[other]]]))]
            rest, at = rest[other], self._next(at[other])
            slot[rest] = at
        return found, slot

    def _differ(self, number: np.ndarray, keys: Sequence[np.ndarray]) -> np.ndarray:
        """Whether the keys that have these numbers differ from `keys`, one by one, bool [n]."""
        differ: np.ndarray = self._keys[0][number] != keys[0]
        for lane, key in zip(self._keys[1:], keys[1:], strict=False):
            differ |= lane[number] != key
        return differ

    def _slot(self, hash: np.ndarray) -> np.ndarray:
        """The first slot of each hash, int64 [n]: its upper bits."""
        return (hash >> np.uint64(65 - len(self._slots).bit_length())).view(np.int64)

    def _next(self, slot: np.ndarray) -> np.ndarray:
        return (slot + 1) & (len(self._slots) - 1)


def _hashed(keys: Sequence[np.ndarray]) -> np.ndarray:
    """The hashes of keys, uint64 [n]; the upper bits are the most random ones (Knuth's multiplicative hashing)."""
    hash = keys[0] * _FACTOR
    for key in keys[1:]:
        hash ^= hash >> np.uint64(32)  # the last bytes of a lane reach only the upper bits: two lanes' would cancel
        hash ^= key
        hash *= _FACTOR
    hash ^= hash >> np.uint64(32)
    hash *= _FACTOR
    return hash


class Strings(NamedTuple):
    """Byte strings within a longer one, `data`: the start of each and its number of bytes, intp [n].

    MARGIN bytes follow the last string. No string is empty, and none contains 0xFF, except MARK as a whole string.
    """

    data: bytes
    start: np.ndarray
    length: np.ndarray

    def take(self, index: np.ndarray | slice) -> "Strings":
        """The strings that an index array, a mask or a slice selects."""
        return Strings(self.data, self.start[index], self.length[index])

    def joined(self) -> bytes:
        r"""The strings one after the other, each with MARK behind it.

        Example: of "the cat", the strings "the" at 0 and "at" at 5 need 4 and 3 bytes, so they end at 4 and 7 of the
        result. It is made of the bytes 0 to 3 and 5 to 7 of the data, and MARK then replaces the last byte of each.

        >>> Strings(b"the cat" + bytes(MARGIN), np.array([0, 5]), np.array([3, 2])).joined()
        b'the\xffat\xff'
        """
        length = self.length + 1
        end = np.cumsum(length)
        if not len(end):
            return b""
        # Byte i of the result is byte place[i] of the data: start + (i - the string's first i)
        place = np.repeat(self.start - (end - length), length)
        place += np.arange(end[-1])
        joined: np.ndarray = np.frombuffer(self.data, np.uint8)[place]
        joined[end - 1] = MARK[0]
        return joined.tobytes()


class Lexicon:
    r"""Byte strings → 0, 1, 2 …

    Strings that are added together get their numbers in no documented order (shorter ones tend to come first), but the
    same sequence of `add` calls always gives the same numbers.

    Example: "cat" occurs twice; "at" is not added and has no number. Among equal strings the last one counts.

    >>> lexicon = Lexicon()
    >>> number, new = lexicon.add(Strings(b"cat the cat" + bytes(MARGIN), np.array([0, 4, 8]), np.array([3, 3, 3])))
    >>> number.tolist(), new.joined()
    ([1, 0, 1], b'the\xffcat\xff')
    >>> lexicon.find(Strings(b"the at" + bytes(MARGIN), np.array([0, 4]), np.array([3, 2]))).tolist()
    [0, -1]
    """

    def __init__(self) -> None:
        self._numbering = Numbering(_LANES, slots=2)
        self._long: dict[bytes, int] = {}  # strings that have more than _LANES lanes

    def __len__(self) -> int:
        return self._numbering.count

    def find(self, strings: Strings) -> np.ndarray:
        """The numbers of strings, int32 [n], UNKNOWN for those without one.

        Several threads may call this at the same time, as long as nothing is added.
        """
        number = np.empty(len(strings.start), np.int32)
        for some, keys in self._keys(strings, lambda string: self._long.get(string, _NO_NUMBER)):
            number[some] = self._numbering.find(keys)
        return number

    def add(self, strings: Strings) -> tuple[np.ndarray, Strings]:
        """Number the strings: (their numbers, int32 [n]; the new ones among them, in the order of their numbers).

        They are added bit by bit, because most strings of a text are there again further on, and finding them is
        quicker than adding them.
        """
        number = np.empty(len(strings.start), np.int32)
        new = [_NONE]
        for first in range(0, len(number), _ADDED_AT_ONCE):
            some = slice(first, first + _ADDED_AT_ONCE)
            number[some] = self.find(strings.take(some))
            unknown = (number[some] == UNKNOWN).nonzero()[0] + first
            for index, keys in self._keys(strings.take(unknown), lambda s: self._long.setdefault(s, len(self._long))):
                index = unknown[index]
                number[index], added = self._numbering.add(keys)
                new.append(index[added])
        return number, strings.take(np.concatenate(new))

    @staticmethod
    def _keys(strings: Strings, number: Callable[[bytes], int]) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        r"""Yields the strings with 1, 2 … lanes: (their indices, intp [n]; their keys, one uint64 [n] per lane).

        The last lane of a string is filled up with at least one 0xFF, so that no key is the beginning of another. The
        only lane of a long string is a 0xFF and then `number(string)`.

        Example: "cat" has one lane. "elephant" has two, because its eighth byte leaves no room for a 0xFF.

        >>> strings = Strings(b"cat elephant" + bytes(MARGIN), np.array([0, 4]), np.array([3, 8]))
        >>> for index, keys in Lexicon._keys(strings, number=len):
        ...     print(index.tolist(), [lane.tobytes() for lane in keys])
        [0] [b'cat\xff\xff\xff\xff\xff']
        [1] [b'elephant', b'\xff\xff\xff\xff\xff\xff\xff\xff']
        """
        data, start, length = strings
        integers = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))
        # integers[i] is made of the bytes i … i + 7, the first one lowest
        lanes = np.minimum(length >> 3, _LANES).astype(np.uint8)
        for last in range(_LANES):
            (some,) = (lanes == last).nonzero()
            if len(some):
                begin = start[some]
                keys = [integers[begin + 8 * lane] for lane in range(last + 1)]
                keys[last] |= _PADDING[length[some] & 7]
                yield some, keys
        # Strings of 32 bytes and more
        (some,) = (lanes == _LANES).nonzero()
        if len(some):
            begins, ends = start[some].tolist(), (start[some] + length[some]).tolist()
            long = [number(data[begin:end]) for begin, end in zip(begins, ends, strict=True)]
            yield some, [np.array(long, np.uint64) << np.uint64(8) | np.uint64(MARK[0])]
