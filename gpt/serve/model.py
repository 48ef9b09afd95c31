"""A run's model in memory: its tokenizer, its decoder, and the texts that wait for a place or have one."""

import os
import time
from collections import deque
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
from gpt.serve.listening import LONGEST, End, Text, Token
from gpt.tokenizer import Tokenizer

News = list[tuple[Text, Token | End]]
_LATE = RequestError(504, f"a text may take {LONGEST:.0f} s in all, its wait included", "timeout")


class Model:
    """The model of a checkpoint of a run: the latest one, or the `best` one. Belongs to the engine's thread.

    Other threads may read what never changes: `run`, `tokenizer` and `config`. `is_broken` becomes True if logits are
    not finite: all texts have then ended with an error, and the model is of no use any more.

    Raises UserError if the checkpoint or the tokenizer does not load, or if there is not enough memory.
    """

    def __init__(self, run: Run, ops: Operations, places: int, best: bool = False) -> None:
        self.run, self._best = run, best
        self._identity = self._on_disk()
        saved = checkpoint.load(run, best=best)
        self.config, self.step_number = saved.model_config, saved.step
        self.tokenizer = Tokenizer.load(run.tokenizer_path)
        self.config.check_tokenizer(run.tokenizer_path, self.tokenizer.vocab_size)
        self._gpt = load_model(saved, ops, fitting(self.config, ops, places))
        self._decoder = Decoder(self._gpt, min(places, len(self._gpt.workspace.logits)))
        self.waiting: deque[Text] = deque()
        self.is_broken = False
        self._texts: dict[Sequence, Text] = {}
        self._logits: dict[Text, deque[np.ndarray]] = {}  # of tokens that `step` has not returned yet

    @property
    def is_busy(self) -> bool:
        """Whether a text is being written."""
        return bool(self._texts)

    @property
    def has_work(self) -> bool:
        return bool(self._texts or self.waiting)

    @property
    def places(self) -> int:
        return self._decoder.places

    # ---- writing ---------------------------------------------------------------------------------------------------

    def step(self, admits: bool = True) -> News:
        """Write one more token of every text, once free places are given to those that wait (if it `admits` them).

        Returns what the texts' listeners are to know.
        """
        news = self._drop_unwanted()
        while admits and self.waiting and self._decoder.free:
            news += self._begin(self.waiting.popleft())
        if not self._texts:
            self._decoder.settle()  # memory of the last texts is free for other work
            return news
        try:
            drawn = self._decoder.step()
        except UserError as error:
            self.is_broken = True
            return news + self.end_all(_broken(error))
        for sequence, id in drawn:
            text = self._texts[sequence]
            if id is None:
                self._forget(sequence)
                is_whole = sequence.seen == text.request.num_tokens
                news.append((text, End("length" if is_whole else "stop")))
            else:
                news.append((text, self._token(text, id)))
        return news

    def end_waiting(self, error: RequestError) -> News:
        """End the texts that have no place yet."""
        texts = list(self.waiting)
        self.waiting.clear()
        return [(text, End(error=error)) for text in texts]

    def end_all(self, error: RequestError) -> News:
        """End all texts."""
        texts = list(self._texts.values())
        for sequence in list(self._texts):
            self._decoder.leave(sequence)
            self._forget(sequence)
        return [(text, End(error=error)) for text in texts] + self.end_waiting(error)

    def _drop_unwanted(self) -> News:
        """Free the places of texts that nobody wants or that have taken too long, and forget those that wait."""
        now = time.monotonic()
        news: News = []

        def fault(text: Text) -> RequestError | None:
            return text.cancelled or (_LATE if now > text.deadline else None)

        for sequence, text in list(self._texts.items()):
            if error := fault(text):
                self._decoder.leave(sequence)
                self._forget(sequence)
                news.append((text, End(error=error)))
        for text in list(self.waiting):
            if error := fault(text):
                self.waiting.remove(text)
                news.append((text, End(error=error)))
        return news

    def _begin(self, text: Text) -> News:
        try:
            news: News = [(text, token) for token in self._scored_prompt(text)] if text.scores_prompt else []
        except UserError as error:
            return [(text, End(error=_broken(error)))]
        if text.request.num_tokens == 0:
            return [*news, (text, End("length"))]
        request = text.request
        if text.likeliest is not None:
            logits: deque[np.ndarray] = deque()
            self._logits[text] = logits
            request = replace(request, watch=lambda row: logits.append(row.copy()))
        self._texts[self._decoder.join(request)] = text
        return news

    def _token(self, text: Text, id: int) -> Token:
        if text.likeliest is None:
            return Token(id)
        return scored(id, self._logits[text].popleft(), text.likeliest)

    def _forget(self, sequence: Sequence) -> None:
        self._logits.pop(self._texts.pop(sequence), None)

    def _scored_prompt(self, text: Text) -> list[Token]:
        """The prompt's tokens with the probabilities that the model gives them, each after those before it."""
        ids, count = text.request.prompt, text.likeliest or 0
        rows = chain.from_iterable(self._gpt.logits_in_chunks(self._gpt.ops.from_host(np.array([ids], np.int32))))
        # Each row is about the token behind it. Nobody asks for the last row, which is about the text's first token.
        return [Token(ids[0]), *(scored(id, row, count) for id, row in zip(ids[1:], rows, strict=False))]

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
        saved, tokenizer = checkpoint.load(self.run, best=self._best), Tokenizer.load(self.run.tokenizer_path)
        if saved.model_config != self.config or tokenizer != self.tokenizer:
            return False
        self._decoder.settle()
        try:
            self._gpt.load(saved.weights().items())
        except UserError:
            return False
        self.step_number = saved.step
        return True

    def _on_disk(self) -> tuple[int, int, int] | None:
        """Numbers that change when the run gets another checkpoint."""
        with suppress(OSError):
            path = self.run.best_config_path if self._best else self.run.latest_config_path
            status = os.stat(path)
            return status.st_ino, status.st_mtime_ns, status.st_size
        return None


def _broken(error: UserError) -> RequestError:
    return RequestError(500, str(error), "model_failed", "model")


def scored(id: int, logits: np.ndarray, count: int) -> Token:
    """A token with the probability that logits, float32 [vocab], give it, and with the `count` likeliest tokens.

    Among equally likely ones the lowest id comes first. Raises UserError if a logit is not finite.

    Example:

    >>> token = scored(0, np.log(np.array([0.25, 0.5, 0.25], np.float32)), count=2)
    >>> round(token.logprob, 3), [(id, round(logprob, 3)) for id, logprob in token.likeliest]
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
    return Token(id, float(logprobs[id]), tuple((int(each), float(logprobs[each])) for each in best))
