"""Clocks of the LDS (shared memory) for one access of a wave, bank conflicts included.

The LDS has 32 banks of 4 bytes, so it serves 128 bytes a clock (AMD's ISA guides). It serves a wave's lanes in groups.
A group has as many lanes as fill the banks, and takes one clock for each different word in its fullest bank. HipKittens
measured which 8 lanes of CDNA read 16 bytes together (analysis/paper_experiments/phases).
"""

import numpy as np

BANKS = 32


def clocks(addresses: np.ndarray, active: np.ndarray, width: int, is_write: bool) -> int:
    """Clocks for `width` bytes (1 to 16) at addresses [lanes], int64, of the lanes that are `active`, bool [lanes].

    Examples, for 32 lanes of 4 bytes: 1 at 0, 4, 8, …; 2 at 0, 8, 16, …, because only 16 banks have words; 1 if all are
    at 0, because the word is the same. 16 bytes each at 0, 16, 32, … take 4.
    """
    total = 0
    for lanes in _groups(len(addresses), width, is_write):
        lanes = lanes[active[lanes]]
        if not len(lanes):
            total += 1
            continue
        words = np.unique(addresses[lanes, None] // 4 + np.arange(-(-width // 4)))
        total += int(np.bincount(words % BANKS).max())
    return total


def _groups(lanes: int, width: int, is_write: bool) -> list[np.ndarray]:
    if width > 8:
        size = 8
        if lanes == 64 and not is_write:
            order = [0, 1, 2, 3, 20, 21, 22, 23, 4, 5, 6, 7, 16, 17, 18, 19]
            order += [8, 9, 10, 11, 28, 29, 30, 31, 12, 13, 14, 15, 24, 25, 26, 27]
            return list(np.add.outer((0, 32), order).reshape(-1, 8))
    else:
        size = 16 if width == 8 else 32
    return list(np.arange(lanes).reshape(-1, size))
