"""The blocks of a long text, worked on in several processes."""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from typing import Any, TypeVar

from gpt.errors import UserError
from gpt.ops.threads import available_threads

Result = TypeVar("Result")

_LONG = 1 << 23  # characters: less is done before other processes have started
_MOST = 8  # processes: what reads, digests and writes is one, and has no work for more


def map_blocks(work: Callable[[str], Result], blocks: Iterable[str]) -> Iterator[Result]:
    """`work(block)` for each block, in order. Of a long text, two blocks per process are on their way at a time.

    `work` goes to each process once, by pickle, and may keep there what it learns. UserError if a process is killed.
    """
    blocks = iter(blocks)
    seen, length = [], 0
    for block in blocks:
        seen.append(block)
        length += len(block)
        if length >= _LONG:
            break
    count = min(available_threads(), _MOST)
    if length < _LONG or count == 1:
        yield from map(work, chain(seen, blocks))
        return
    # spawn: a fork would copy locks that another thread holds, such as a progress bar's
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, context, initializer=_begin, initargs=(work,))
    results = deque()
    try:
        for block in chain(seen, blocks):
            results.append(pool.submit(_do, block))
            if len(results) > 2 * count:
                yield results.popleft().result()
        while results:
            yield results.popleft().result()
    except BrokenProcessPool:
        raise UserError("a process that worked on the text was killed, most likely for want of memory") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(work: Callable[[str], Any]) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one


def _do(block: str) -> Any:
    return _work(block)
