"""A run's model in memory: its tokenizer, its decoder, and the texts that wait for a place or have one."""

import os
import time
from collections import deque
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import replace
from itertools import chain

import numpy as np

from gpt import checkpoint
from gpt.decoder import Decoder, Sequence
from gpt.errors import UserError
from gpt.generate import fitting, load_model
from gpt.ops.interface import Operations
from gpt.run import Run
from gpt.serve.errors import RequestError
from gpt.serve.messages import End, ModelInfo, Score, Text
from gpt.serve.outbox import Outbox
from gpt.tokenizer import Tokenizer

LONGEST = 600.0  # seconds that a text may take, its wait for a place included
_LATE = RequestError(504, f"a text may take {LONGEST:.0f} s in all, its wait included", "timeout")


class Model:
    """The model of a checkpoint of a run: the latest one, or the `best` one. What it writes goes into `outbox`.

    A run that trains may have best weights before its first checkpoint: they are used until then.

    `number` is another one for each model. `is_broken` becomes True if logits are not finite: all texts have then ended
    with an error, and the model is of no use any more.

    Raises UserError if the checkpoint or the tokenizer does not load, or if there is not enough memory.
    """

    def __init__(self, run: Run, number: int, ops: Operations, outbox: Outbox, places: int, best: bool = False) -> None:
        self.run, self.number, self._outbox, self._best = run, number, outbox, best
        self._identity = self._on_disk()
        saved = checkpoint.load(run, best=self._takes_best)
        self.config, self.step_number = saved.model_config, saved.step
        self.tokenizer = Tokenizer.load(run.tokenizer_path)
        self.config.check_tokenizer(run.tokenizer_path, self.tokenizer.vocab_size)
        self._gpt = load_model(saved, ops, fitting(self.config, ops, places))
        self._decoder = Decoder(self._gpt, min(places, len(self._gpt.workspace.logits)))
        self._waiting: deque[Text] = deque()
        self.is_broken = False
        self._texts: dict[Sequence, Text] = {}
        self._deadlines: dict[int, float] = {}  # by the text's number, for those that wait too; the earliest first
        self._logits: dict[Sequence, deque[np.ndarray]] = {}  # of tokens that `step` has not returned yet

    @property
    def info(self) -> ModelInfo:
        """Everything that the front needs to know of it."""
        return ModelInfo(self.number, self.run, self.step_number, self.config, self.tokenizer)

    @property
    def is_busy(self) -> bool:
        """Whether a text is being written."""
        return bool(self._texts)

    @property
    def has_work(self) -> bool:
        return bool(self._texts or self._waiting)

    @property
    def places(self) -> int:
        return self._decoder.places

    # ---- writing ---------------------------------------------------------------------------------------------------

    def take(self, texts: Iterable[Text]) -> None:
        """Texts that wait for a place from now on."""
        for text in texts:
            self._waiting.append(text)
            self._deadlines[text.number] = time.monotonic() + LONGEST

    def cancel(self, numbers: Collection[int]) -> None:
        """Free the places of texts that nobody wants any more, and forget those that wait."""
        for text in self._left(numbers):
            self._outbox.drop(text)

    def step(self, admits: bool = True) -> None:
        """Write one more token of every text, once free places are given to those that wait (if it `admits` them)."""
        self._end_late()
        while admits and self._waiting and self._decoder.free:
            self._begin(self._waiting.popleft())
        if not self._texts:
            self._decoder.settle()  # memory of the last texts is free for other work
            return
        try:
            drawn = self._decoder.step()
        except UserError as error:
            self.is_broken = True
            self.end_all(_broken(error))
            return
        for sequence, id in drawn:
            text = self._texts[sequence]
            if id is None:
                self._forget(sequence)
                is_whole = sequence.seen == text.request.num_tokens
                self._outbox.end(text, End("length" if is_whole else "stop"))
            elif text.likeliest is None:
                self._outbox.token(text, id)
            else:
                self._outbox.token(text, id, scored(id, self._logits[sequence].popleft(), text.likeliest))

    def end_waiting(self, error: RequestError) -> None:
        """End the texts that have no place yet."""
        self._end(self._left({text.number for text in self._waiting}), error)

    def end_all(self, error: RequestError) -> None:
        """End all texts, and wait until the device has: the memory of this model may be freed then."""
        self._end(self._left(set(self._deadlines)), error)
        self._decoder.settle()

    def _end_late(self) -> None:
        now = time.monotonic()
        if now > next(iter(self._deadlines.values()), float("inf")):
            self._end(self._left({number for number, deadline in self._deadlines.items() if now > deadline}), _LATE)

    def _end(self, texts: Iterable[Text], error: RequestError) -> None:
        for text in texts:
            self._outbox.end(text, End(error=error))

    def _left(self, numbers: Collection[int]) -> list[Text]:
        """Take the texts with these numbers away from their places and from those that wait."""
        written = [(sequence, text) for sequence, text in self._texts.items() if text.number in numbers]
        waiting = [text for text in self._waiting if text.number in numbers]
        for sequence, _ in written:
            self._decoder.leave(sequence)
            self._forget(sequence)
        for text in waiting:
            self._waiting.remove(text)
            del self._deadlines[text.number]
        return [text for _, text in written] + waiting

    def _begin(self, text: Text) -> None:
        try:
            if text.scores_prompt:
                self._score_prompt(text)
        except UserError as error:
            del self._deadlines[text.number]
            self._outbox.end(text, End(error=_broken(error)))
            return
        if text.request.num_tokens == 0:
            del self._deadlines[text.number]
            self._outbox.end(text, End("length"))
            return
        if text.likeliest is None:
            self._texts[self._decoder.join(text.request)] = text
            return
        logits: deque[np.ndarray] = deque()
        sequence = self._decoder.join(replace(text.request, watch=lambda row: logits.append(row.copy())))
        self._texts[sequence], self._logits[sequence] = text, logits

    def _forget(self, sequence: Sequence) -> None:
        del self._deadlines[self._texts.pop(sequence).number]
        self._logits.pop(sequence, None)

    def _score_prompt(self, text: Text) -> None:
        """Tell the prompt's tokens with the scores that the model gives them, each after those before it."""
        ids, count = text.request.prompt, text.likeliest or 0
        rows = chain.from_iterable(self._gpt.logits_in_chunks(self._gpt.ops.from_host(np.array([ids], np.int32))))
        # Each row is about the token behind it. Nobody asks for the last row, which is about the text's first token.
        scores = [Score(), *(scored(id, row, count) for id, row in zip(ids[1:], rows, strict=False))]
        for id, score in zip(ids, scores, strict=True):
            self._outbox.token(text, id, score)

    # ---- following a run that trains --------------------------------------------------------------------------------

    @property
    def is_outdated(self) -> bool:
        """Whether the run has another checkpoint by now."""
        return self._on_disk() not in (self._identity, None)

    def reload(self) -> bool:
        """Take the weights of the run's newer checkpoint in place of those in memory. No text may be being written.

        Returns False if that is impossible: they belong to another model or tokenizer, or break off. This object is of
        no use then. Raises UserError, and changes nothing, if the checkpoint does not load.
        """
        self._identity = self._on_disk()
        saved, tokenizer = checkpoint.load(self.run, best=self._takes_best), Tokenizer.load(self.run.tokenizer_path)
        if saved.model_config != self.config or tokenizer != self.tokenizer:
            return False
        self._decoder.settle()
        try:
            self._gpt.load(saved.weights().items())
        except UserError:
            return False
        self.step_number = saved.step
        return True

    @property
    def _takes_best(self) -> bool:
        return self._best or (self.run.has_weights and not self.run.has_checkpoints)

    def _on_disk(self) -> tuple[int, int, int] | None:
        """Numbers that change when the run gets another checkpoint."""
        with suppress(OSError):
            path = self.run.best_config_path if self._takes_best else self.run.latest_config_path
            status = os.stat(path)
            return status.st_ino, status.st_mtime_ns, status.st_size
        return None


def _broken(error: UserError) -> RequestError:
    return RequestError(500, str(error), "model_failed", "model")


def scored(id: int, logits: np.ndarray, count: int) -> Score:
    """The score that logits, float32 [vocab], give a token, with the `count` likeliest tokens.

    Among equally likely ones the lowest id comes first. Raises UserError if a logit is not finite.

    Example:

    >>> score = scored(0, np.log(np.array([0.25, 0.5, 0.25], np.float32)), count=2)
    >>> round(score.logprob, 3), [(id, round(logprob, 3)) for id, logprob in score.likeliest]
    (-1.386, [(1, -0.693), (0, -1.386)])
    """
    wide = logits.astype(np.float64)
    if not np.isfinite(wide).all():
        raise UserError("the model's logits are not finite, as its training diverged: serve an earlier checkpoint")
    largest = wide.max()
    logprobs = wide - largest - np.log(np.exp(wide - largest).sum())
    count = min(count, len(wide))
    at_least = np.partition(wide, -count)[-count] if count else np.inf
    candidates = np.flatnonzero(wide >= at_least)
    best = candidates[np.argsort(-wide[candidates], kind="stable")][:count]
    return Score(float(logprobs[id]), tuple((int(each), float(logprobs[each])) for each in best))
