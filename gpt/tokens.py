"""The ids that a run reads, in one file or in many, mapped into memory and read as one sequence.

tokens.bin is one file. Tokens that another program has made may be in many (gpt/corpus/token_files.py). Only what is
asked for is read, so the files may be larger than memory.
"""

import mmap
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

_SMALL = 16 << 20  # bytes of a file that is soon in memory by itself, because a page fault reads 128 KiB and more


class Tokens:
    """Arrays of ids (unsigned integers [n] each, in memory or memory-mapped), read as if they were one.

    Example: two arrays of 5 and 3 ids. The window of 4 at 3 goes from one to the other.

    >>> tokens = Tokens([np.arange(5, dtype=np.uint16), np.arange(5, 8, dtype=np.uint32)])
    >>> len(tokens), tokens[4:7].tolist(), tokens.windows(np.array([0, 3]), 4).tolist()
    (8, [4, 5, 6], [[0, 1, 2, 3], [3, 4, 5, 6]])
    """

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._arrays = [np.asarray(array) for array in arrays]  # an array indexes faster than a memmap
        self._begins = np.cumsum([0, *map(len, arrays)], dtype=np.int64)  # of each array, and the end of the last one
        self._mappings = [_mapping(array) for array in arrays]
        self._views: dict[tuple[int, int], np.ndarray] = {}  # of an array, and a length: all of its windows
        self.reads_ahead = any(mapping is not None for mapping in self._mappings)

    def __len__(self) -> int:
        return int(self._begins[-1])

    def __getitem__(self, part: slice) -> np.ndarray:
        """The ids of a range without a step, as an array: a view of the file if they lie in one, else int32."""
        begin, end, _ = part.indices(len(self))
        number = self._number_of(begin)
        first = int(self._begins[number])
        if end <= self._begins[number + 1]:
            inside: np.ndarray = self._arrays[number][begin - first : max(begin, end) - first]
            return inside
        return self.at(np.arange(begin, end))

    def at(self, positions: np.ndarray) -> np.ndarray:
        """The ids at `positions` (int64, of any shape), int32 of the same shape."""
        found, numbers = np.empty(positions.shape, np.int32), self._number_of(positions)
        for number in np.unique(numbers):
            there = numbers == number
            found[there] = self._arrays[number][positions[there] - self._begins[number]]
        return found

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The `length` ids from each of `starts` (int64 [n]) on: integers [n, length]."""
        if len(self._arrays) == 1:
            all_of_it: np.ndarray = self._windows_of(0, length)[starts]
            return all_of_it
        found, numbers = np.empty((len(starts), length), np.int32), self._number_of(starts)
        is_inside = starts + length <= self._begins[numbers + 1]
        for number in np.unique(numbers[is_inside]):
            rows = is_inside & (numbers == number)
            found[rows] = self._windows_of(int(number), length)[starts[rows] - self._begins[number]]
        if not is_inside.all():
            found[~is_inside] = self.at(starts[~is_inside, None] + np.arange(length))
        return found

    def announce(self, starts: np.ndarray, length: int) -> None:
        """Ask the operating system to fetch the windows at `starts` from the disk, without waiting for them.

        Of a window that goes on in the next file, only the part in the first one is asked for.
        """
        numbers = self._number_of(starts)
        for number in np.unique(numbers):
            if (mapping := self._mappings[number]) is not None:
                _announce(mapping, self._arrays[number], starts[numbers == number] - self._begins[number], length)

    def _number_of(self, positions: np.ndarray | int) -> np.ndarray:
        """The number of the array that each position lies in; a position behind the end counts to the last one."""
        numbers: np.ndarray = np.searchsorted(self._begins[1:-1], positions, side="right")
        return numbers

    def _windows_of(self, number: int, length: int) -> np.ndarray:
        if (number, length) not in self._views:
            self._views[number, length] = sliding_window_view(self._arrays[number], length)
        return self._views[number, length]


def _mapping(array: np.ndarray) -> mmap.mmap | None:
    """The mapped file of an array, if it is worth fetching ahead from."""
    mapping: mmap.mmap | None = getattr(array, "_mmap", None)
    return mapping if mapping is not None and len(mapping) > _SMALL and hasattr(mmap, "MADV_WILLNEED") else None


def _announce(mapping: mmap.mmap, array: np.ndarray, starts: np.ndarray, length: int) -> None:
    # madvise takes a range of the mapped file that starts at a page: round each window's first byte down to one.
    before = array.ctypes.data - np.frombuffer(mapping, np.uint8).ctypes.data  # bytes before id 0
    begin = before + starts * array.itemsize
    end = before + np.minimum(starts + length, len(array)) * array.itemsize
    pages = begin & -mmap.PAGESIZE
    with suppress(OSError, ValueError):  # a window that cannot be fetched ahead is read when it is due
        for page, size in zip(pages.tolist(), (end - pages).tolist(), strict=True):
            mapping.madvise(mmap.MADV_WILLNEED, page, size)
