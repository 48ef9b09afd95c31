"""The texts of one request: submitted together, and read piece by piece as they are written."""

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gpt.decoder import Request, Stream
from gpt.errors import UserError
from gpt.generate import prompt_ids
from gpt.serve.engine_client import EngineClient
from gpt.serve.errors import RequestError
from gpt.serve.fields import Options
from gpt.serve.messages import ModelInfo, Update
from gpt.serve.wording import Piece, Wording


class Progress(NamedTuple):
    """News of text `choice`: its next pieces, and at its end the reason, "stop" or "length"."""

    choice: int
    pieces: list[Piece]
    reason: str | None


@dataclass
class _Writing:
    """A text that is being written, and its place among the texts of its request."""

    choice: int
    wording: Wording
    echo: Wording | None  # reads the prompt's tokens, which come before the text's
    to_echo: int = 0  # of these, those that are still to come


@dataclass
class Usage:
    """Numbers of tokens."""

    prompt: int
    completion: int

    def to_json(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }


class Texts:
    """`options.n` texts after each prompt, in the order of the prompts. Made inside the event loop.

    Whoever makes it calls `cancel` at the end, whatever has happened. Text k of prompt p has the stream (seed, p, k).
    So it depends on the request alone, and text 0 of a single prompt is the one that `hipgpt generate` writes with this
    seed. A text ends before each of `stop_ids`, and before the mark that ends a text. Raises RequestError as
    `EngineClient.submit` does.
    """

    def __init__(
        self,
        engine: EngineClient,
        model: ModelInfo,
        options: Options,
        prompts: Sequence[list[int]],
        max_tokens: int,
        *,
        echo: bool = False,
        stop_ids: Collection[int] = (),
    ) -> None:
        self.model, self.options, self._engine = model, options, engine
        self._prompt_tokens = sum(map(len, prompts))
        scores_prompt = echo and options.likeliest is not None
        seed = secrets.randbits(63) if options.seed is None else options.seed
        eos = model.tokenizer.end_of_text
        eos_id = -1 if eos is None else eos
        window = model.config.max_seq_len
        requests = [
            Request(ids, max_tokens, options.sampling, eos_id, Stream(seed, prompt, sample), window)
            for prompt, ids in enumerate(prompts)
            for sample in range(options.n)
        ]
        submitted = [(request, options.likeliest, scores_prompt) for request in requests]
        self._listener, self._numbers = engine.submit(model, submitted)
        self._writings = {
            number: _Writing(
                choice,
                Wording(model.tokenizer, request.prompt, options.stop, stop_ids),
                Wording(model.tokenizer, []) if echo else None,
                len(request.prompt) if scores_prompt else 0,
            )
            for choice, (number, request) in enumerate(zip(self._numbers, requests, strict=True))
        }
        self._left = set(self._numbers)  # those that have not ended
        self._before = [  # what comes before the first tokens: prompts without scores
            Progress(each.choice, each.echo.read(request.prompt, []), None)
            for each, request in zip(self._writings.values(), requests, strict=True)
            if each.echo and not scores_prompt
        ]

    @property
    def count(self) -> int:
        return len(self._numbers)

    @property
    def usage(self) -> Usage:
        """The numbers of tokens so far."""
        return Usage(self._prompt_tokens, sum(each.wording.count for each in self._writings.values()))

    async def step_number(self) -> int:
        """The step of the checkpoint that writes the texts, once the first of them has begun.

        While they waited for a place, a newer checkpoint may have taken the place of the one in `model`. The engine
        says so before it says anything of them.
        """
        await self._listener.something()
        now = self._engine.in_memory(self.model.run.name)
        return now.step_number if now and now.number == self.model.number else self.model.step_number

    def cancel(self) -> None:
        """End those that have not ended yet: nobody reads them any more."""
        self._engine.cancel(self._numbers)

    async def more(self) -> list[Progress]:
        """The news of the texts since the last call, for which it waits; [] once all of them have ended.

        Raises RequestError if one of them ends with an error.
        """
        if self._before:
            before, self._before = self._before, []
            return before
        while self._left:
            news = [self._read(update) for update in await self._listener.arrived() if update.number in self._left]
            if news:
                return news
        return []

    def _read(self, update: Update) -> Progress:
        """The pieces that are certain with these tokens. A stop string may end the text before the engine does."""
        each, (number, ids, scores, end) = self._writings[update.number], update
        pieces: list[Piece] = []
        if each.to_echo and each.echo and ids:
            count = min(each.to_echo, len(ids))
            each.to_echo -= count
            pieces += each.echo.read(ids[:count], scores[:count])
            ids, scores = ids[count:], scores[count:]
        pieces += each.wording.read(ids, scores)
        if end and end.error and not each.wording.stopped:
            raise end.error
        reason: str | None = None
        if end and not each.wording.stopped:
            pieces += each.wording.finish()
            reason = end.reason
        elif each.wording.stopped:
            reason = "stop"
            self._engine.cancel([number])
        if reason:
            self._left.discard(number)
        return Progress(each.choice, pieces, reason)


def ids_of(model: ModelInfo, prompt: str | list[int], scored: bool) -> list[int]:
    """The ids of a prompt: those of its text, or those given. An empty text is the mark that begins a text.

    Raises RequestError if the model cannot read it: an unknown id, no known token, too long to be `scored` at once.
    """
    tokenizer, longest = model.tokenizer, model.config.max_seq_len
    if isinstance(prompt, list):
        ids = prompt
        if max(ids) >= tokenizer.vocab_size:
            raise RequestError(400, f"prompt has the id {max(ids)}, but the model's are below {tokenizer.vocab_size}",
                               "invalid_value", "prompt")  # fmt: skip
    elif not prompt and tokenizer.end_of_text is not None:
        ids = [tokenizer.end_of_text]
    else:
        try:
            ids = prompt_ids(tokenizer, prompt, "prompt")
        except UserError as error:
            raise RequestError(400, str(error), "invalid_value", "prompt") from None
    if scored and len(ids) > longest:
        message = f"the prompt has {len(ids)} tokens, but the model can score at most {longest} at once"
        raise RequestError(400, message, "context_length_exceeded", "prompt")
    return ids
