"""Ranks that are forks of this process, connected by pipes."""

import json
import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any


class OtherRankEndedError(Exception):
    """Another rank has ended, so that it neither gives a value nor takes one."""


class PipedRanks:
    """Rank `rank`. The first one has a pipe to each other rank, in their order; another has one to the first."""

    def __init__(self, rank: int, pipes: list[Connection]) -> None:
        self.rank, self.pipes = rank, pipes
        self.size = len(pipes) + 1 if rank == 0 else None
        self.is_first = rank == 0

    def share(self, value: Any = None) -> Any:
        try:
            if not self.is_first:
                return json.loads(self.pipes[0].recv_bytes())
            for pipe in self.pipes:
                pipe.send_bytes(json.dumps(value).encode())
            return value
        except (EOFError, OSError):
            raise OtherRankEndedError from None

    def gather(self, value: Any) -> list[Any]:
        try:
            if self.is_first:
                return [value, *(json.loads(pipe.recv_bytes()) for pipe in self.pipes)]
            self.pipes[0].send_bytes(json.dumps(value).encode())
            return []
        except (EOFError, OSError):
            raise OtherRankEndedError from None


def on_ranks(size: int, work: Callable[[PipedRanks], Any]) -> list[Any]:
    """Run `work` on each rank: on the first in this process, on the others in forks of it.

    Returns the result of each rank in their order, which JSON can write for all but the first. An exception stands for
    the result of a rank that raised it (of another rank than the first: "TYPE: MESSAGE"), and a negative number for
    that of a rank that a signal has ended. A rank that ends is an error to ranks that wait for it.
    """
    pipes, reports = [Pipe() for _ in range(size - 1)], [Pipe(duplex=False) for _ in range(size - 1)]
    children = []
    for rank in range(1, size):
        if (child := os.fork()) == 0:
            for number, (mine, theirs) in enumerate(pipes, start=1):
                mine.close()
                if number != rank:
                    theirs.close()
            try:
                result = work(PipedRanks(rank, [pipes[rank - 1][1]]))
            except BaseException as error:  # every way to end a rank
                result = f"{type(error).__name__}: {error}"
                if not isinstance(error, OtherRankEndedError):
                    traceback.print_exc()
            reports[rank - 1][1].send_bytes(json.dumps(result).encode())
            os._exit(0)
        children.append(child)
    for _, theirs in pipes:
        theirs.close()
    try:
        results = [work(PipedRanks(0, [mine for mine, _ in pipes]))]
    except Exception as error:
        results = [error]
    for mine, _ in pipes:
        mine.close()
    for child, (report, sending) in zip(children, reports, strict=True):
        sending.close()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with suppress(EOFError):
            result = json.loads(report.recv_bytes()) if status == 0 else status
            results.append(result)
        report.close()
    return results
