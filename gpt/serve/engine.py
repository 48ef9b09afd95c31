"""One thread writes all texts: it owns the models and their decoders, and gives every text a token in turn.

Texts come from other threads (`submit`). A text waits for a free place of its model, joins the others there, and leaves
at its end, however long these go on (continuous batching, Yu et al. 2022, Orca). Its tokens depend on its request alone
(gpt/decoder.py). Everything else is work of the server's loop, in another thread.

A model is loaded when the first request for it comes, in this thread too. With `reload`, a run's newer checkpoint takes
the place of the one in memory. Texts that have begun end with the weights that they began with, and those that come
later wait for that.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from gpt.errors import UserError
from gpt.ops.interface import Operations
from gpt.run import Run
from gpt.serve.errors import RequestError
from gpt.serve.listening import End, Messenger, Text
from gpt.serve.model import Model, News

MOST_WAITING = 256  # texts that wait for a place; more are refused
LOOK = 2.0  # seconds between two looks for a newer checkpoint
_ENDING = RequestError(503, "the server is ending: ask again when it is back", "server_ending")
_REPLACED = RequestError(503, "the run has another model now: ask again", "model_replaced", "model")


class Engine:
    """Models of runs on one device, each with as many `places`: of their latest or their `best` checkpoints.

    `report` gets a line for the user about each model that is loaded. `run` is the thread's work; the other methods may
    be called from any thread.
    """

    def __init__(
        self,
        ops: Operations,
        places: int,
        *,
        best: bool = False,
        reload: bool = False,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._ops, self._places, self._best, self._reload, self._report = ops, places, best, reload, report
        self._outdated: set[str] = set()  # runs with a newer checkpoint
        self._messenger = Messenger()
        # What follows is shared with other threads, under `_changed`.
        self._changed = threading.Condition()
        self._models: dict[str, Model] = {}  # by the run's name
        self._wanted: deque[tuple[Run, Future[Model]]] = deque()
        self._coming: deque[tuple[Model, Text]] = deque()
        self._waiting = 0  # texts that have no place yet
        self._ends_at: float | None = None  # None: nobody has asked for an end

    @property
    def device(self) -> str:
        """What the device is called."""
        return self._ops.description

    # ---- from any thread --------------------------------------------------------------------------------------------

    def model(self, run: Run) -> "Future[Model]":
        """The model of a run, once it is in memory. The future raises RequestError if it cannot be."""
        future: Future[Model] = Future()
        with self._changed:
            if self._ends_at is not None:
                future.set_exception(_ENDING)
            elif run.name in self._models:
                future.set_result(self._models[run.name])
            else:
                self._wanted.append((run, future))
                self._changed.notify()
        return future

    def submit(self, model: Model, texts: Sequence[Text]) -> None:
        """Have texts written, all or none. Raises RequestError: too many texts wait, or the server is ending."""
        with self._changed:
            if self._ends_at is not None:
                raise _ENDING
            if self._waiting + len(texts) > MOST_WAITING:
                message = f"{self._waiting} texts wait for a place, and {MOST_WAITING} may at most: ask again later"
                raise RequestError(429, message, "queue_full", headers={"Retry-After": "5"})
            self._waiting += len(texts)
            self._coming += [(model, text) for text in texts]
            self._changed.notify()

    def end(self, seconds: float) -> None:
        """Take no more texts, end those that have no place yet, and let `run` return when the others have ended.

        Those that have not ended after so many seconds end with an error.
        """
        with self._changed:
            self._ends_at = min(time.monotonic() + seconds, self._ends_at or float("inf"))
            self._changed.notify()

    # ---- the thread's work ------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Write texts until `end`. If something unforeseen is raised here, all texts end with an error first."""
        look_at = time.monotonic() + LOOK
        try:
            while self._wait(look_at):
                self._load_wanted()
                news = self._sort_in()
                if self._reload and time.monotonic() >= look_at:
                    self._outdated |= {name for name, model in self._models.items() if model.is_outdated}
                    look_at = time.monotonic() + LOOK
                for model in list(self._models.values()):
                    news += self._step_on(model)
                self._messenger.tell(news)
                with self._changed:
                    self._waiting = len(self._coming) + sum(len(model.waiting) for model in self._models.values())
        except BaseException:
            self._end_all(RequestError(500, "the server has failed", "server_failed"))
            raise
        self._end_all(_ENDING)

    def _wait(self, look_at: float) -> bool:
        """Wait until there is something to do. Returns False if there is nothing more to do."""
        with self._changed:
            while not (self._coming or self._wanted or any(model.has_work for model in self._models.values())):
                if self._ends_at is not None:
                    return False
                left = look_at - time.monotonic() if self._reload else None
                if left is not None and left <= 0:
                    return True
                self._changed.wait(left)
            return self._ends_at is None or time.monotonic() < self._ends_at

    def _load_wanted(self) -> None:
        while self._wanted:
            with self._changed:
                run, future = self._wanted.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._models.get(run.name) or self.load(run))
            except UserError as error:
                future.set_exception(RequestError(503, str(error), "model_not_loaded", "model"))

    def load(self, run: Run) -> Model:
        """Load a run's model, in the engine's thread. Raises UserError as `Model` does."""
        model = Model(run, self._ops, self._places, self._best)
        self._report(f"Run {run.name}, step {model.step_number}: in memory, with {model.places} places")
        with self._changed:
            self._models[run.name] = model
        return model

    def _forget(self, model: Model, error: RequestError) -> News:
        """Let go of a model, and of the texts that it still has. The next request loads the run's model anew."""
        self._outdated.discard(model.run.name)
        with self._changed:
            del self._models[model.run.name]
        return model.end_all(error)

    def _sort_in(self) -> News:
        """Give each text that has come to its model."""
        news: News = []
        while self._coming:
            with self._changed:
                model, text = self._coming.popleft()
            if self._models.get(model.run.name) is model:
                model.waiting.append(text)
            else:
                news.append((text, End(error=_REPLACED)))
        return news

    def _step_on(self, model: Model) -> News:
        is_outdated = model.run.name in self._outdated
        if is_outdated and not model.is_busy and not self._renew(model):
            return self._forget(model, _REPLACED)
        news: News = [] if self._ends_at is None else model.end_waiting(_ENDING)
        news += model.step(admits=model.run.name not in self._outdated)
        return news + self._forget(model, _ENDING) if model.is_broken else news

    def _renew(self, model: Model) -> bool:
        """Load a newer checkpoint into a model that writes nothing. Returns False if that takes a new `Model`."""
        name = model.run.name
        self._outdated.discard(name)
        try:
            is_same_kind = model.reload()
        except UserError as error:
            self._report(f"Run {name} stays at step {model.step_number}: {error}")
            return True
        self._report(f"Run {name}: {f'now at step {model.step_number}' if is_same_kind else 'made anew'}")
        return is_same_kind

    def _end_all(self, error: RequestError) -> None:
        """End everything that others wait for."""
        self.end(0)
        news: News = [(text, End(error=error)) for _, text in self._coming]
        for model in self._models.values():
            news += model.end_all(error)
        self._messenger.tell(news)
        for _, future in self._wanted:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
