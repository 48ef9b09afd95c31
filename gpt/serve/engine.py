"""The engine writes all texts: it owns the models and their decoders, and gives every text a token in turn.

It is the work of one thread, the main thread of the command, which does nothing else. Requests and answers are work of
another process, the front; `Channel` connects them. A text waits for a free place of its model, joins the others there,
and leaves at its end, however long these go on (continuous batching, Yu et al. 2022, Orca). Its tokens depend on its
request alone (gpt/decoder.py).

A model is loaded when the first request for it comes, in this thread too. With `reload`, a run's newer checkpoint takes
the place of the one in memory. Texts that have begun end with the weights that they began with, and those that come
later wait for that.
"""

import itertools
import time
from collections.abc import Callable

from gpt.errors import UserError
from gpt.ops.interface import Operations
from gpt.run import Run
from gpt.serve import messages
from gpt.serve.channel import Channel, ChannelClosedError
from gpt.serve.errors import ENDING, RequestError, unreadable
from gpt.serve.messages import End
from gpt.serve.model import Model
from gpt.serve.outbox import Outbox

LOOK = 2.0  # seconds between two looks for a newer checkpoint
_REPLACED = RequestError(503, "the run has another model now: ask again", "model_replaced", "model")


class Engine:
    """Models of runs on one device, each with as many `places`: of their latest or their `best` checkpoints.

    `report` gets a line for the user about each model that is loaded, once the front knows of it. All methods belong to
    one thread, except for `end`. Those that talk with the front raise ChannelClosedError if it has gone.
    """

    def __init__(
        self,
        ops: Operations,
        channel: Channel,
        places: int,
        *,
        best: bool = False,
        reload: bool = False,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._ops, self._places, self._best, self._reload, self._report = ops, places, best, reload, report
        self._channel, self._outbox = channel, Outbox(channel)
        self._numbers = itertools.count()
        self._models: dict[str, Model] = {}  # by the run's name
        self._outdated: set[str] = set()  # runs with a newer checkpoint
        self._look_at = 0.0  # when to look for more of them
        self._ends_at: float | None = None  # None: nobody has asked for an end
        self._is_ending = False  # the front knows of it

    def end(self, seconds: float) -> None:
        """Take no more texts, end those that have no place yet, and let `run` return when the others have ended.

        Those that have not ended after so many seconds end with an error. From any thread.
        """
        self._ends_at = min(time.monotonic() + seconds, self._ends_at or float("inf"))
        self._channel.wake()

    def load(self, run: Run) -> None:
        """Load a run's model. Raises UserError as `Model` does."""
        model = Model(run, next(self._numbers), self._ops, self._outbox, self._places, self._best)
        self._models[run.name] = model
        self._channel.send(messages.Loaded(model.info))
        self._report(f"Run {run.name}, step {model.step_number}: in memory, with {model.places} places")

    def run(self) -> None:
        """Write texts until `end`. If something unforeseen is raised here, all texts end with an error first."""
        self._channel.send(messages.Begin(self._ops.description))
        self._look_at = time.monotonic() + LOOK
        try:
            while not self._is_over:
                for message in self._channel.received(self._patience):
                    self._take(message)
                self._turn()
        except ChannelClosedError:
            raise
        except BaseException:
            self._channel.send(messages.Done(RequestError(500, "the server has failed", "server_failed")))
            raise
        self._outbox.tell(all_of_it=True)
        self._channel.send(messages.Done(ENDING))

    @property
    def has_work(self) -> bool:
        """Whether a text is being written, or waits for a place."""
        return any(model.has_work for model in self._models.values())

    @property
    def _is_over(self) -> bool:
        """Whether `end` was called, and nothing is left to do, or no time."""
        return self._ends_at is not None and (not self.has_work or time.monotonic() >= self._ends_at)

    @property
    def _patience(self) -> float | None:
        """The seconds for which the engine may wait for messages."""
        if self.has_work:
            return 0
        return max(0.0, self._look_at - time.monotonic()) if self._reload else None

    def _take(self, message: object) -> None:
        """Carry out a message of the front's."""
        if isinstance(message, messages.Load):
            try:
                if message.run.name not in self._models and self._ends_at is None:
                    self.load(message.run)
            except UserError as error:
                refusal = unreadable(error, message.run.path.parent, 503, "model_not_loaded", "model")
                self._channel.send(messages.Refused(message.run.name, refusal))
            return
        assert isinstance(message, messages.Write | messages.Cancel)
        model = next((each for each in self._models.values() if each.number == message.model), None)
        if isinstance(message, messages.Cancel):
            if model:
                model.cancel(set(message.numbers))
        elif model:
            model.take(message.texts)
        else:
            for text in message.texts:
                self._outbox.end(text, End(error=_REPLACED))

    def _turn(self) -> None:
        """One more token of every text."""
        if self._ends_at is not None and not self._is_ending:
            self._is_ending = True
            self._channel.send(messages.Ending())
        if self._reload and time.monotonic() >= self._look_at:
            self._outdated |= {name for name, model in self._models.items() if model.is_outdated}
            self._look_at = time.monotonic() + LOOK
        for model in list(self._models.values()):
            self._step_on(model)
        self._outbox.tell(all_of_it=not self.has_work)

    def _step_on(self, model: Model) -> None:
        is_outdated = model.run.name in self._outdated
        if is_outdated and not model.is_busy and not self._renew(model):
            return
        if self._is_ending:
            model.end_waiting(ENDING)
        model.step(admits=model.run.name not in self._outdated)
        if model.is_broken:
            self._forget(model, ENDING)

    def _forget(self, model: Model, error: RequestError) -> None:
        """Let go of a model, and of the texts that it still has. The next request loads the run's model anew."""
        self._outdated.discard(model.run.name)
        del self._models[model.run.name]
        model.end_all(error)
        self._channel.send(messages.Forgotten(model.run.name))

    def _renew(self, model: Model) -> bool:
        """Load a newer checkpoint into a model that writes nothing. Returns False if it had to be forgotten."""
        name = model.run.name
        self._outdated.discard(name)
        try:
            is_same_kind = model.reload()
        except UserError as error:
            self._report(f"Run {name} stays at step {model.step_number}: {error}")
            return True
        if is_same_kind:
            self._channel.send(messages.Loaded(model.info))
            self._report(f"Run {name}: now at step {model.step_number}")
        else:
            self._forget(model, _REPLACED)
            self._report(f"Run {name}: made anew")
        return is_same_kind
