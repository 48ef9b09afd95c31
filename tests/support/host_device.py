"""A base class for devices that stand in for a GPU. Their arrays are NumPy's, and their work can be recorded."""

from collections.abc import Callable
from functools import cached_property, partial

import numpy as np

from gpt.ops.cpu.host import HostTimeline


class HostDevice:
    """Everything in `Device` but kernels. Subclasses run their kernels through `ask`, so that they are recorded too."""

    has_wgmma = False
    xp, blas, stream, timeline = np, None, 0, HostTimeline()
    blas_choice, blas_card, cache = "auto", "", ""
    multiprocessors = 1
    records = True
    _recorded: list[Callable[[], object]] | None = None
    _landing: list[Callable[[], object]] | None = None  # downloads that nobody has waited for

    @cached_property
    def notes(self) -> list[str]:
        return []

    def use(self) -> None:
        pass

    def ask(self, work: Callable[[], object]) -> None:
        """Do the work now, or note it if work is being recorded."""
        if self._recorded is None:
            work()
        else:
            self._recorded.append(work)

    def record(self, work: Callable[[], object]) -> Callable[[], object]:
        self._recorded = recorded = []
        try:
            work()
        finally:
            self._recorded = None
        return lambda: [each() for each in recorded]

    def clear(self, array: np.ndarray) -> None:
        self.ask(partial(array.fill, 0))

    def pinned(self, size: int) -> np.ndarray:
        return np.empty(size, np.uint8)

    def upload(self, host: np.ndarray, out: np.ndarray) -> Callable[[], object]:
        out[...] = host
        host[...] = 0xA5  # a caller that relies on values of an earlier step is found out
        return lambda: None

    def download(self, array: np.ndarray, host: np.ndarray) -> Callable[[], object]:
        self._landing, value = self._landing or [], array.copy()
        host.view(np.uint8)[...] = 0xA5  # a caller that reads before it has waited is found out
        self._landing.append(partial(np.copyto, host, value))

        def wait() -> None:  # all downloads may be done by now, as on a GPU
            for land in self._landing:
                land()
            self._landing.clear()

        return wait

    def to_host(self, array: np.ndarray) -> np.ndarray:
        return array.copy()

    def free_bytes(self) -> int:
        return 2**40

    def held_bytes(self) -> int:
        return 0
