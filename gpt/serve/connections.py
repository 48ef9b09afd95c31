"""uvicorn's server, with a time limit for the head of a request.

uvicorn waits for a head as long as its client likes. A thousand clients that send nothing, or a byte now and then (slow
loris), would keep everybody else out. guard.py limits the time of a body.
"""

import time
from typing import Any

import uvicorn

HEAD_SECONDS = 15.0  # from the beginning of a connection, or from the end of the answer before, to the end of a head
_TICKS = 10  # of uvicorn's tenths of a second, between two looks


class Server(uvicorn.Server):
    """Closes connections that have been without a request for HEAD_SECONDS."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._idle: dict[Any, tuple[Any, float]] = {}  # connection → its last request, and when it was seen to be over

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS == 0:
            self._close_idle(time.monotonic())
        is_over: bool = await super().on_tick(counter)
        return is_over

    def _close_idle(self, now: float) -> None:
        before, self._idle = self._idle, {}
        for connection in list(self.server_state.connections):
            request = connection.cycle
            if request is not None and not request.response_complete:
                continue
            last, since = before.get(connection, (request, now))
            self._idle[connection] = (request, since if last is request else now)
            if now - self._idle[connection][1] > HEAD_SECONDS:
                connection.shutdown()
