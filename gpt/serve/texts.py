"""The texts of one request: submitted together, and read piece by piece as they are written."""

import secrets
from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gpt.decoder import Request, Stream
from gpt.errors import UserError
from gpt.generate import prompt_ids
from gpt.serve.engine import Engine
from gpt.serve.errors import RequestError
from gpt.serve.fields import Wishes
from gpt.serve.listening import End, Listener, Text, Token
from gpt.serve.model import Model
from gpt.serve.wording import Piece, Wording


class Progress(NamedTuple):
    """What has become of text `number`: its next pieces, and at its end the reason, "stop" or "length"."""

    number: int
    pieces: list[Piece]
    reason: str | None


@dataclass
class _Writing:
    """A text that is being written."""

    text: Text
    wording: Wording
    echo: Wording | None  # reads the prompt's tokens, which come before the text's
    to_echo: int = 0  # of these, those that are still to come
    is_done: bool = False


@dataclass
class Usage:
    """Numbers of tokens."""

    prompt: int
    completion: int = 0

    def to_json(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }


class Texts:
    """`wishes.n` texts after each prompt, in the order of the prompts. Made inside the event loop.

    Whoever makes it calls `cancel` at the end, whatever has happened. Text k of prompt p has the stream (seed, p, k).
    So it depends on the request alone, and text 0 of a single prompt is the one that `hipgpt generate` writes with this
    seed. A text ends before each of `stop_ids`, and before the mark that ends a text. Raises RequestError as
    `Engine.submit` does.
    """

    def __init__(
        self,
        engine: Engine,
        model: Model,
        wishes: Wishes,
        prompts: Sequence[list[int]],
        max_tokens: int,
        *,
        echo: bool = False,
        stop_ids: Collection[int] = (),
    ) -> None:
        self.model, self.wishes, self.usage = model, wishes, Usage(sum(map(len, prompts)))
        self._max_tokens, self._echo, self._stop_ids = max_tokens, echo, stop_ids
        self._listener = Listener()
        seed = secrets.randbits(63) if wishes.seed is None else wishes.seed
        self._writings = [
            self._writing(ids, Stream(seed, prompt, sample))
            for prompt, ids in enumerate(prompts)
            for sample in range(wishes.n)
        ]
        engine.submit(model, [each.text for each in self._writings])

    @property
    def count(self) -> int:
        return len(self._writings)

    def cancel(self) -> None:
        """End those that have not ended yet: nobody reads them any more."""
        for each in self._writings:
            each.text.cancel()

    async def progress(self) -> AsyncGenerator[Progress, None]:
        """What becomes of the texts, until all have ended. Raises RequestError if one ends with an error."""
        for number, each in enumerate(self._writings):
            if each.echo and not each.text.scores_prompt:
                tokens = [each.echo.feed(Token(id)) for id in each.text.request.prompt]
                yield Progress(number, [piece for pieces in tokens for piece in pieces], None)
        numbers = {each.text: number for number, each in enumerate(self._writings)}
        left = self.count
        while left:
            pieces: dict[int, list[Piece]] = {}
            reasons: dict[int, str] = {}
            for text, what in await self._listener.arrived():
                number = numbers[text]
                each = self._writings[number]
                if each.is_done:  # a stop string has ended it before the engine has
                    continue
                pieces.setdefault(number, []).extend(self._read(each, what))
                if each.wording.stopped:
                    each.is_done = True
                    each.text.cancel()
                    left -= 1
                    reasons[number] = what.reason if isinstance(what, End) else "stop"
            for number, some in pieces.items():
                yield Progress(number, some, reasons.get(number))

    def _read(self, each: _Writing, what: Token | End) -> list[Piece]:
        if isinstance(what, End):
            if what.error:
                raise what.error
            return each.wording.finish()
        if each.to_echo and each.echo:
            each.to_echo -= 1
            return each.echo.feed(what)
        self.usage.completion += 1
        return each.wording.feed(what)

    def _writing(self, ids: list[int], stream: Stream) -> _Writing:
        wishes, model = self.wishes, self.model
        eos = model.tokenizer.end_of_text
        window = model.config.max_seq_len
        request = Request(ids, self._max_tokens, wishes.sampling, -1 if eos is None else eos, stream, window)
        scores_prompt = self._echo and wishes.likeliest is not None
        return _Writing(
            Text(self._listener, request, wishes.likeliest, scores_prompt),
            Wording(model.tokenizer, ids, wishes.stop, self._stop_ids),
            Wording(model.tokenizer, []) if self._echo else None,
            len(ids) if scores_prompt else 0,
        )


def ids_of(model: Model, prompt: str | list[int], scored: bool) -> list[int]:
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
