"""Collectives of ranks on GPUs, by NCCL (NVIDIA) or RCCL (AMD), which CuPy reaches under one name."""

import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np

from gpt.distributed.collectives import Collectives, Exchange
from gpt.errors import UserError

Group = str | list[int]  # a group's name as JSON has it: bytes in hexadecimal digits, or CuPy's tuple before version 14


def unique_id() -> Group:
    """The name of a new group of ranks, which the first rank tells the others. Raises UserError if NCCL is missing."""
    name = _nccl().get_unique_id()
    return name.hex() if isinstance(name, bytes) else list(name)


def bus_id() -> str:
    """Where CuPy's current GPU is in this machine, such as 0000:1B:00.0."""
    import cupy

    return str(cupy.cuda.runtime.deviceGetPCIBusId(cupy.cuda.Device().id))


def version() -> str:
    """The version of NCCL or RCCL, such as "2.27.7". Raises UserError if it is missing."""
    number = int(_nccl().get_version())
    return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"


class NcclCollectives(Collectives):
    """Exchanges among GPUs, each rank's being CuPy's current one.

    They run on a stream of their own. An exchange begins when the work asked for before it is done, and goes on beside
    later work. All of this may be recorded in a graph. bf16 arrays have dtype uint16.

    Connecting takes about a second, so it goes on in a thread, and the first exchange waits for its end. An exchange
    raises UserError if the GPUs cannot be connected.
    """

    def __init__(self, rank: int, size: int, group: Group) -> None:
        import cupy

        self._cupy, self._nccl, self._rank = cupy, _nccl(), rank
        self._types = {
            np.dtype(np.uint16): self._nccl.NCCL_BFLOAT16,
            np.dtype(np.float32): self._nccl.NCCL_FLOAT32,
            np.dtype(np.float64): self._nccl.NCCL_FLOAT64,
        }
        # A higher priority than the default 0: what an exchange waits for, all ranks wait for.
        self._stream = cupy.cuda.Stream(non_blocking=True, priority=-1)
        self._connected: Any = None
        self._error: Exception | None = None
        connecting = threading.Thread(target=self._connect, args=(size, group, cupy.cuda.Device()), daemon=True)
        connecting.start()
        self._connecting: threading.Thread | None = connecting

    def _connect(self, size: int, group: Group, device: Any) -> None:
        name = bytes.fromhex(group) if isinstance(group, str) else tuple(group)
        try:
            with device:
                self._connected = self._nccl.NcclCommunicator(size, name, self._rank)
        except Exception as error:  # CuPy may raise any
            self._error = error

    @property
    def _group(self) -> Any:
        """CuPy's group of all ranks, once they are connected."""
        if self._connecting is not None:
            self._connecting.join()
            if self._error:
                advice = "NCCL_DEBUG=INFO in the environment tells more"
                raise UserError(f"the GPUs cannot be connected: {self._error} ({advice})") from None
            self._connecting = None
            # CuPy would destroy the group at the end, which waits for ever for the graphs that use it to be destroyed.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connected))
        return self._connected

    def reduce(self, exchanges: Sequence[Exchange]) -> None:
        total, group, stream = self._nccl.NCCL_SUM, self._group, self._stream.ptr
        with self._beside():
            for whole, bounds, own in exchanges:
                kind, source = self._types[whole.dtype], whole.data.ptr
                if not bounds:
                    group.allReduce(source, source, whole.size, kind, total, stream)
                elif _are_equal(bounds):
                    group.reduceScatter(source, own.data.ptr, own.size, kind, total, stream)
                else:
                    for rank, start, count in _parts(bounds):
                        target = own.data.ptr if rank == self._rank else 0
                        group.reduce(source + start * whole.itemsize, target, count, kind, total, rank, stream)

    def gather(self, exchanges: Sequence[Exchange]) -> None:
        group, stream = self._group, self._stream.ptr
        with self._beside():
            for whole, bounds, own in exchanges:
                kind, target = self._types[whole.dtype], whole.data.ptr
                if _are_equal(bounds):
                    group.allGather(own.data.ptr, target, own.size, kind, stream)
                    continue
                for rank, start, count in _parts(bounds):
                    place = target + start * whole.itemsize
                    source = own.data.ptr if rank == self._rank else place
                    group.broadcast(source, place, count, kind, rank, stream)

    def wait(self) -> None:
        self._follow(self._cupy.cuda.get_current_stream(), self._stream)

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """Exchanges inside the `with` are one launch, behind the work asked for so far."""
        self._follow(self._stream, self._cupy.cuda.get_current_stream())
        self._nccl.groupStart()
        yield
        self._nccl.groupEnd()

    def _follow(self, later: Any, earlier: Any) -> None:
        """Let the stream `later` wait for the work of `earlier` so far."""
        done = self._cupy.cuda.Event(disable_timing=True)
        done.record(earlier)
        later.wait_event(done)


def _nccl() -> Any:
    """CuPy's module of NCCL. Raises UserError if the library is missing."""
    import cupy
    from cupy.cuda import nccl

    if nccl.available:
        return nccl
    if cupy.cuda.runtime.is_hip:
        raise UserError("several GPUs need RCCL, which CuPy does not find: install ROCm's package rccl")
    cuda = cupy.cuda.runtime.runtimeGetVersion() // 1000
    raise UserError(f"several GPUs need NCCL, which CuPy does not find: pip install nvidia-nccl-cu{cuda}")


def _are_equal(bounds: tuple[int, ...]) -> bool:
    return len({stop - start for start, stop in pairwise(bounds)}) == 1


def _parts(bounds: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Rank, first element and number of elements of each part that has any."""
    for rank, (start, stop) in enumerate(pairwise(bounds)):
        if start < stop:
            yield rank, start, stop - start
