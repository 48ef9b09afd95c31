"""OpenAI's answers: texts as one JSON object, or as a stream of events that each have some more of them."""

import json
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

from gpt.serve.errors import RequestError
from gpt.serve.messages import Score
from gpt.serve.texts import Texts
from gpt.serve.wording import Piece, token_text
from gpt.tokenizer import Tokenizer

_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False)  # json.dumps would make one for every event


@dataclass
class CompletionForm:
    """How /v1/completions has a text and its probabilities."""

    tokenizer: Tokenizer
    has_logprobs: bool
    prefix = "cmpl"
    whole = piecewise = "text_completion"
    _offsets: dict[int, int] = field(default_factory=dict)  # characters of each text so far

    def begins(self, index: int) -> dict[str, Any] | None:
        """The choice that a stream begins a text with, or None."""
        return None

    def choice(self, index: int, pieces: list[Piece], reason: str | None, is_whole: bool) -> dict[str, Any]:
        """Some of text number `index`, or all of it."""
        text = "".join(piece.text for piece in pieces)
        logprobs = self._logprobs(index, pieces) if self.has_logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, index: int, pieces: list[Piece]) -> dict[str, Any]:
        """Four lists with an entry for each token. `text_offset` is its place in the answer's text, in characters."""
        lists: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        offset = self._offsets.get(index, 0)
        for text, score in pieces:
            if score is not None:
                lists["tokens"].append(text)
                lists["token_logprobs"].append(score.logprob)
                lists["top_logprobs"].append(self._top(text, score) if score.logprob is not None else None)
                lists["text_offset"].append(offset)
            offset += len(text)
        self._offsets[index] = offset
        return lists

    def _top(self, text: str, score: Score) -> dict[str, float | None]:
        """The likeliest tokens and the one that was drawn. Of two with the same text the likelier one counts."""
        top: dict[str, float | None] = {}
        for name, logprob in _likeliest(self.tokenizer, text, score.likeliest):
            top.setdefault(name, logprob)
        top.setdefault(text, score.logprob)
        return top


@dataclass
class ChatForm:
    """How /v1/chat/completions has an answer and its probabilities."""

    tokenizer: Tokenizer
    has_logprobs: bool
    prefix = "chatcmpl"
    whole, piecewise = "chat.completion", "chat.completion.chunk"

    def begins(self, index: int) -> dict[str, Any] | None:
        """The choice that a stream begins an answer with: it says who speaks."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def choice(self, index: int, pieces: list[Piece], reason: str | None, is_whole: bool) -> dict[str, Any]:
        """Some of answer number `index`, or all of it."""
        text = "".join(piece.text for piece in pieces)
        said: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text, "refusal": None}}
            if is_whole
            else {"delta": {"content": text} if text else {}}
        )
        logprobs = {"content": list(self._logprobs(pieces)), "refusal": None} if self.has_logprobs else None
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, pieces: list[Piece]) -> Iterable[dict[str, Any]]:
        for text, score in pieces:
            if score is not None:
                likeliest = _likeliest(self.tokenizer, text, score.likeliest)
                yield {**_told(text, score.logprob), "top_logprobs": [_told(*each) for each in likeliest]}


def _likeliest(tokenizer: Tokenizer, text: str, likeliest: Iterable[tuple[int, float]]) -> Iterable[tuple[str, float]]:
    """The texts and the log probabilities of the likeliest tokens in the place of one that reads `text`.

    A tokenizer of the kind `word` has the space before a word from the word before it, so all of them have it.
    """
    space = " " if tokenizer.kind == "word" and text.startswith(" ") else ""
    for id, logprob in likeliest:
        yield space + token_text(tokenizer, id), logprob


def _told(text: str, logprob: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "surrogatepass"))}


@dataclass
class Answer:
    """The answer with these texts, whole or as events."""

    texts: Texts
    form: CompletionForm | ChatForm

    async def _head(self, kind: str) -> dict[str, Any]:
        """What every object of the answer begins with, once its first text has begun."""
        created, run = int(time.time()), self.texts.model.run.name
        return {
            "id": f"{self.form.prefix}-{secrets.token_hex(12)}",
            "created": created,
            "model": run,
            "system_fingerprint": f"{run}-step{await self.texts.step_number()}",
            "object": kind,
        }

    async def whole(self) -> dict[str, Any]:
        """The answer once all texts have ended. Raises RequestError."""
        head = await self._head(self.form.whole)
        pieces: list[list[Piece]] = [[] for _ in range(self.texts.count)]
        reasons: list[str | None] = [None] * self.texts.count
        while news := await self.texts.more():
            for index, some, reason in news:
                pieces[index] += some
                reasons[index] = reason
        choices = [
            self.form.choice(index, *each, is_whole=True)
            for index, each in enumerate(zip(pieces, reasons, strict=True))
        ]
        return {**head, "choices": choices, "usage": self.texts.usage.to_json()}

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events, those that come at the same time together. An error is the last of them."""
        head = _JSON.encode(await self._head(self.form.piecewise))[:-1]  # up to what differs, in all events
        usage = ', "usage": null' if self.texts.options.includes_usage else ""

        def event(choice: dict[str, Any]) -> str:
            return f'data: {head}, "choices": [{_JSON.encode(choice)}]{usage}}}\n\n'

        try:
            if begins := [begin for index in range(self.texts.count) if (begin := self.form.begins(index))]:
                yield _encoded("".join(map(event, begins)))
            while news := await self.texts.more():
                choices = [
                    self.form.choice(index, pieces, reason, is_whole=False)
                    for index, pieces, reason in news
                    if pieces or reason
                ]
                if choices:
                    yield _encoded("".join(map(event, choices)))
            last = f'data: {head}, "choices": [], "usage": {_JSON.encode(self.texts.usage.to_json())}}}\n\n'
            yield _encoded((last if usage else "") + "data: [DONE]\n\n")
        except RequestError as error:
            yield _encoded(f"data: {_JSON.encode(error.to_json())}\n\n")


def _encoded(events: str) -> bytes:
    return events.encode("utf-8", "replace")
