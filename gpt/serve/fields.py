"""The fields of a request's body: those that hipgpt knows are checked, and all others are refused by name.

Names, meanings and defaults are those of OpenAI's API (https://platform.openai.com/docs/api-reference). `top_k` and
`repetition_penalty` come on top, under the names that other servers of open models give them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpt.config import SamplingConfig
from gpt.errors import shown
from gpt.serve.errors import RequestError
from gpt.system.reading import INTEGER, NUMBER, TEXT, TRUTH, Kind, parse

MOST_TEXTS = 128  # of one request: prompts times n
MOST_TOKENS = 16_384  # of one text
MOST_IN_ALL = 65_536  # tokens of all texts of one request
MOST_STOPS = 4
MOST_LIKELIEST = 20
USUAL_TOKENS = 16  # OpenAI's default for completions


@dataclass(frozen=True)
class Options:
    """The options that completions and chats have in common. `likeliest` is as in `gpt.serve.messages.Text`.

    `seed` is None if the request does not say it.
    """

    model: str
    n: int
    sampling: SamplingConfig
    seed: int | None
    stop: tuple[str, ...]
    likeliest: int | None
    streams: bool
    includes_usage: bool


@dataclass(frozen=True)
class Completion:
    """The body of /v1/completions. Each prompt is a text or its ids; `echo` asks for it in front of its text."""

    options: Options
    prompts: tuple[str | list[int], ...]
    max_tokens: int
    echo: bool


@dataclass(frozen=True)
class Chat:
    """The body of /v1/chat/completions, with its messages as they came. `max_tokens` is None if it does not say it."""

    options: Options
    messages: list[Any]
    max_tokens: int | None

    def most_tokens(self, room: int) -> int:
        """The most tokens of an answer: as many as the model has `room` for, within all limits, if it does not say."""
        return self.max_tokens or max(1, min(room, MOST_TOKENS, MOST_IN_ALL // self.options.n))


def _integer(least: int, most: int) -> Kind:
    return Kind(f"an integer from {least} to {most}", lambda value: INTEGER.holds(value) and least <= value <= most)


def _only(*values: object) -> Kind:
    """These values alone, which change nothing: programs send the defaults of what hipgpt does not support."""
    words = " or ".join("empty" if value in ([], {}) else shown(value) for value in values)
    return Kind(
        f"{words}, because hipgpt supports nothing else",
        lambda value: any(value == each and type(value) in (type(each), int, float) for each in values),
    )


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(_ID.holds(each) for each in value)


def _is_prompt(value: object) -> bool:
    if TEXT.holds(value) or _are_ids(value):
        return True
    return isinstance(value, list) and bool(value) and all(TEXT.holds(each) or _are_ids(each) for each in value)


def _are_stops(value: object) -> bool:
    stops = value if isinstance(value, list) else [value]
    return len(stops) <= MOST_STOPS and all(TEXT.holds(each) and each for each in stops)


_ID = _integer(0, 2**31 - 1)
_STREAM_OPTIONS = Kind(
    'an object with "include_usage": true or false',
    lambda value: (
        isinstance(value, dict) and value.keys() <= {"include_usage"} and all(map(TRUTH.holds, value.values()))
    ),
)  # fmt: skip
_COMMON = {
    "model": TEXT,
    "n": _integer(1, MOST_TEXTS),
    "max_tokens": _integer(0, MOST_TOKENS),
    "temperature": Kind("a number from 0 to 2", lambda value: NUMBER.holds(value) and 0 <= value <= 2),
    "top_p": Kind("a number above 0 and at most 1", lambda value: NUMBER.holds(value) and 0 < value <= 1),
    "top_k": _integer(0, 2**31 - 1),
    "repetition_penalty": Kind("a number above 0", lambda value: NUMBER.holds(value) and value > 0),
    "seed": _integer(-(2**63), 2**63 - 1),
    "stop": Kind(f"a text that is not empty, or a list of at most {MOST_STOPS}", _are_stops),
    "stream": TRUTH,
    "stream_options": _STREAM_OPTIONS,
    "user": TEXT,  # says who asks, which changes nothing
    "presence_penalty": _only(0),
    "frequency_penalty": _only(0),
    "logit_bias": _only({}),
}
_COMPLETION = _COMMON | {
    "prompt": Kind("a text, a list of token ids, or a list of either", _is_prompt),
    "echo": TRUTH,
    "logprobs": _integer(0, MOST_LIKELIEST),
    "best_of": _only(1),
    "suffix": _only(""),
}
_CHAT = _COMMON | {
    "messages": Kind("a list of messages", lambda value: isinstance(value, list) and bool(value)),
    "max_completion_tokens": _integer(1, MOST_TOKENS),
    "logprobs": TRUTH,
    "top_logprobs": _integer(0, MOST_LIKELIEST),
    "tools": _only([]),
    "response_format": _only({"type": "text"}),
}


def completion(body: bytes) -> Completion:
    """The request in a body of /v1/completions. Raises RequestError."""
    fields = _checked(_object(body), _COMPLETION, ("model",))
    prompt = fields.get("prompt", "")
    prompts = (prompt,) if isinstance(prompt, str) or _are_ids(prompt) else tuple(prompt)
    max_tokens = fields.get("max_tokens", USUAL_TOKENS)
    options = _options(fields, fields.get("logprobs"))
    _check_total(options.n, len(prompts), max_tokens)
    echo = fields.get("echo", False)
    if max_tokens == 0 and not echo:
        raise RequestError(400, "max_tokens is 0, which only makes sense with echo", param="max_tokens")
    return Completion(options, prompts, max_tokens, echo)


def chat(body: bytes) -> Chat:
    """The request in a body of /v1/chat/completions. Raises RequestError."""
    fields = _checked(_object(body), _CHAT, ("model", "messages"))
    max_tokens = fields.get("max_completion_tokens", fields.get("max_tokens"))
    if max_tokens == 0:
        raise RequestError(400, "max_tokens is 0, but must be at least 1", param="max_tokens")
    if "top_logprobs" in fields and not fields.get("logprobs"):
        raise RequestError(400, "top_logprobs asks for logprobs: true as well", param="top_logprobs")
    likeliest = fields.get("top_logprobs", 0) if fields.get("logprobs") else None
    options = _options(fields, likeliest)
    _check_total(options.n, 1, max_tokens or 0)
    return Chat(options, fields["messages"], max_tokens)


def text_to_split(body: bytes) -> str:
    """The text in a body of the page's tokenizer. Raises RequestError."""
    text: str = _checked(_object(body), {"text": TEXT}, ("text",))["text"]
    return text


def _check_total(n: int, prompts: int, max_tokens: int) -> None:
    """Raise RequestError if all texts of a request together are too many or too long."""
    texts = n * prompts
    if texts > MOST_TEXTS:
        raise RequestError(400, f"{prompts} prompts with n = {n} are more than {MOST_TEXTS} texts", param="n")
    if texts * max_tokens > MOST_IN_ALL:
        message = f"{texts} texts of {max_tokens} tokens are more than {MOST_IN_ALL} tokens in all"
        raise RequestError(400, message, param="max_tokens")


def _options(fields: Mapping[str, Any], likeliest: int | None) -> Options:
    stop = fields.get("stop", [])
    return Options(
        model=fields["model"],
        n=fields.get("n", 1),
        sampling=SamplingConfig(
            temperature=fields.get("temperature", 1),
            top_k=fields.get("top_k", 0),
            top_p=fields.get("top_p", 1),
            repetition_penalty=fields.get("repetition_penalty", 1),
        ),
        seed=fields.get("seed"),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        likeliest=likeliest,
        streams=fields.get("stream", False),
        includes_usage=fields.get("stream_options", {}).get("include_usage", False),
    )


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = parse(body)
    except ValueError as error:
        raise RequestError(400, f"the body is not valid JSON: {shown(str(error), quoted=False)}") from None
    if not isinstance(found, dict):
        raise RequestError(400, f"the body is {shown(found)}, but must be an object with fields")
    return found


def _checked(found: dict[str, Any], kinds: Mapping[str, Kind], required: tuple[str, ...]) -> dict[str, Any]:
    """The fields that are not null, once each is known to be of its kind."""
    given = {key: value for key, value in found.items() if value is not None}
    for key, value in given.items():
        if key not in kinds:
            message = f"hipgpt does not support {shown(key, quoted=False)}: leave it out"
            raise RequestError(400, message, "unsupported_parameter", shown(key, quoted=False))
        if not kinds[key].holds(value):
            raise RequestError(400, f"{key} is {shown(value)}, but must be {kinds[key].words}", "invalid_value", key)
    for key in required:
        if key not in given:
            raise RequestError(400, f"the field {key} is missing", "missing_required_parameter", key)
    return given
