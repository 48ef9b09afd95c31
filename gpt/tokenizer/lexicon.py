"""Distinct byte strings numbered 0, 1, 2 …: NumPy looks up the numbers of all words of a block at once.

A word of a text is not a Python string here, but a place in the text's bytes and a length. Eight bytes make one
unsigned integer, so most words are compared and hashed as one or two integers, all words of a block side by side.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from gpt.system.threads import ahead

MARK = b"\xff"  # byte that UTF-8 never has: the end-of-text mark within a text, and the end of each of several words
UNKNOWN = -1  # number of a string that has none
MARGIN = 8  # bytes that must follow the last string, because strings are read eight bytes at a time

_LANES = 4  # 64-bit integers of the longest key; a longer string is looked up in a dictionary
# Masks, by the bytes that a string has in its last lane, that set all other bytes of that lane to 0xFF
_PADDING = np.array([0xFFFFFFFFFFFFFFFF << 8 * length & 0xFFFFFFFFFFFFFFFF for length in range(8)], np.uint64)
_ADDED_AT_ONCE = 1 << 17  # keys that are added before the others are looked up again; more are worth a second thread
_NONE = np.zeros(0, np.intp)  # array of no places, so that there is always something to concatenate
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # factor of the hash: 2^64 over the golden ratio


class Numbering:
    """Keys of `lanes` unsigned 64-bit integers → 0, 1, 2 … by open addressing (Knuth, volume 3, section 6.4).

    Keys come as one array per lane, uint64 [n]. There are at least `slots` slots for each key: the larger this is, the
    fewer steps a search takes, and the more memory the table.

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
        for lane, key in zip(self._keys, keys, strict=True):
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
        (added,) = (number >= before).nonzero()
        number[added] = renumbered.take(number[added] - before)
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
        slot = self._slot(self._hash.take(number))
        found = number.copy()
        rest, at = np.arange(len(number)), slot
        while len(rest):
            # Take the slots that are free
            (free,) = (self._slots[at] == UNKNOWN).nonzero()
            self._slots[at[free]] = number[rest[free]]  # if several keys want the same slot, one gets it
            found[rest] = there = self._slots[at]
            # Keys that find neither themselves nor an equal go on to the next slot
            (other,) = (there != number[rest]).nonzero()
            other = other[self._differ(there[other], list(self._keys.take(number[rest[other]], axis=1)))]
            rest, at = rest[other], self._next(at[other])
            slot[rest] = at
        return found, slot

    def _differ(self, number: np.ndarray, keys: Sequence[np.ndarray]) -> np.ndarray:
        """Whether the keys that have these numbers differ from `keys`, one by one, bool [n]."""
        differ: np.ndarray = self._keys[0].take(number) != keys[0]
        for lane, key in zip(self._keys[1:], keys[1:], strict=True):
            differ |= lane.take(number) != key
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


class _Dictionary:
    """The same as `Numbering` for strings of any length, one by one. The only lane of keys has `bytes`, object [n]."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}

    def find(self, keys: Sequence[np.ndarray]) -> np.ndarray:
        return np.array([self._numbers.get(key, UNKNOWN) for key in keys[0].tolist()], np.int32)

    def add(self, keys: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        before, numbers = len(self._numbers), self._numbers
        number = np.array([numbers.setdefault(key, len(numbers)) for key in keys[0].tolist()], np.int32)
        _, index = np.unique(number, return_index=True)
        return number, index[number[index] >= before]


class Keys(NamedTuple):
    """Strings of one size class: their indices, intp [n], and their keys, one array [n] per lane."""

    which: np.ndarray
    lanes: list[np.ndarray]

    def take(self, index: np.ndarray | slice) -> "Keys":
        """The keys that an index array or a slice selects."""
        return Keys(self.which[index], [lane[index] for lane in self.lanes])


class Found(NamedTuple):
    """The numbers of strings, int32 [n], UNKNOWN for those without one, and the keys of these, by size class."""

    strings: Strings
    number: np.ndarray
    unknown: list[Keys]


class Lexicon:
    r"""Byte strings → 0, 1, 2 …

    Each size class has a numbering of its own: strings of 1, 2, 3 and 4 lanes, and longer ones. So a key has no more
    lanes than it needs, and threads can add strings of different classes. `_numbers` has the string's number for each
    number of such a class, and UNKNOWN at the end, for UNKNOWN.

    Strings that are added together get their numbers in no documented order (shorter ones come first), but the same
    sequence of `add` calls always gives the same numbers.

    Example: "cat" occurs twice; "at" is not added and has no number. Among equal strings the last one counts.

    >>> lexicon = Lexicon()
    >>> found = lexicon.find(Strings(b"cat the cat" + bytes(MARGIN), np.array([0, 4, 8]), np.array([3, 3, 3])))
    >>> found.number.tolist(), [new.joined() for new in lexicon.add([found])], found.number.tolist()
    ([-1, -1, -1], [b'the\xffcat\xff'], [1, 0, 1])
    >>> lexicon.find(Strings(b"the at" + bytes(MARGIN), np.array([0, 4]), np.array([3, 2]))).number.tolist()
    [0, -1]
    """

    def __init__(self) -> None:
        self._count = 0
        self._numberings: list[Numbering | _Dictionary] = [
            *(Numbering(lanes, slots=2) for lanes in range(1, _LANES + 1)),
            _Dictionary(),
        ]
        self._numbers = [np.array([UNKNOWN], np.int32) for _ in self._numberings]

    def __len__(self) -> int:
        return self._count

    def find(self, strings: Strings) -> Found:
        """Look strings up. Several threads may call this at the same time, as long as nothing is added."""
        number, unknown = np.empty(len(strings.start), np.int32), []
        for numbering, numbers, keys in zip(self._numberings, self._numbers, _keys(strings), strict=True):
            number[keys.which] = some = numbers.take(numbering.find(keys.lanes))
            unknown.append(keys.take((some == UNKNOWN).nonzero()[0]))
        return Found(strings, number, unknown)

    def add(self, texts: Sequence[Found], threads: int = 1) -> list[Strings]:
        """Number the unknown strings of several texts, and write their numbers into `number` of each.

        Returns the new strings, in the order of their numbers. Several texts may have the same unknown strings.
        """
        classes, add_class, new = range(len(self._numberings)), partial(self._add_class, texts), []
        is_much = sum(len(keys.which) for text in texts for keys in text.unknown) > _ADDED_AT_ONCE
        for size, found in enumerate(ahead(add_class, classes, threads) if is_much else map(add_class, classes)):
            count = sum(len(added) for _, added in found)
            numbers = np.arange(self._count, self._count + count + 1, dtype=np.int32)
            numbers[-1] = UNKNOWN
            self._numbers[size] = np.concatenate([self._numbers[size][:-1], numbers])
            self._count += count
            for text, (number, added) in zip(texts, found, strict=True):
                index = text.unknown[size].which
                text.number[index] = self._numbers[size].take(number)
                if len(added):
                    new.append(text.strings.take(index[added]))
        return new

    def _add_class(self, texts: Sequence[Found], size: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Add the unknown strings of a size class: (their numbers in it, int32 [n]; the new ones' indices) by text.

        They are added bit by bit, because most strings of a text are there again further on, and finding them is
        quicker than adding them.
        """
        numbering, found = self._numberings[size], []
        for text in texts:
            keys = text.unknown[size]
            number, new = np.empty(len(keys.which), np.int32), [_NONE]
            for first in range(0, len(number), _ADDED_AT_ONCE):
                lanes = keys.take(slice(first, first + _ADDED_AT_ONCE)).lanes
                some = numbering.find(lanes)
                (unknown,) = (some == UNKNOWN).nonzero()
                some[unknown], added = numbering.add([lane[unknown] for lane in lanes])
                number[first : first + len(some)] = some
                new.append(unknown[added] + first)
            found.append((number, np.concatenate(new)))
        return found


def _keys(strings: Strings) -> list[Keys]:
    r"""The keys of strings, by size class.

    The last lane of a string is filled up with at least one 0xFF, so that all strings of a class have different keys.

    Example: "cat" has one lane. "elephant" has two, because its eighth byte leaves no room for a 0xFF.

    >>> found = _keys(Strings(b"cat elephant" + bytes(MARGIN), np.array([0, 4]), np.array([3, 8])))
    >>> [(keys.which.tolist(), [lane.tobytes() for lane in keys.lanes]) for keys in found[:2]]
    [([0], [b'cat\xff\xff\xff\xff\xff']), ([1], [b'elephant', b'\xff\xff\xff\xff\xff\xff\xff\xff'])]
    """
    data, start, length = strings
    integers = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))
    # integers[i] is made of the bytes i … i + 7, the first one lowest
    size = np.minimum(length >> 3, _LANES).astype(np.uint8)
    found = []
    for last in range(_LANES):
        (some,) = (size == last).nonzero()
        begin = start[some]
        lanes = [integers[begin + 8 * lane] for lane in range(last + 1)]
        lanes[last] |= _PADDING[length[some] & 7]
        found.append(Keys(some, lanes))
    # Strings of 32 bytes and more
    (some,) = (size == _LANES).nonzero()
    long = np.empty(len(some), object)
    ends = start[some] + length[some]
    long[:] = [data[begin:end] for begin, end in zip(start[some].tolist(), ends.tolist(), strict=True)]
    return [*found, Keys(some, [long])]
