"""Text from a trained model: one token at a time, sampled, decoded and streamed.

Keys and values of past positions are cached, so a token costs one position. The model's positions are learned and
cannot be shifted: when the window is full, the last half of it is decoded anew from position 0 and becomes the new
context. That costs half a window every half a window, so a token costs two positions then, however long the text.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gpt.checkpoint import Checkpoint, largest_tensor
from gpt.errors import UserError, shown
from gpt.model import GPT, KVCache, memory_bytes
from gpt.ops.interface import Array
from gpt.system.limits import require_memory
from gpt.tokenizer import Tokenizer


def _check(ok: bool, flag: str, value: object, wanted: str) -> None:
    if not ok:
        raise UserError(f"{flag} is {value}, but must be {wanted}")


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Raises UserError for a value out of range.

    Applied in this order: `repetition_penalty` (1 = off) makes tokens of the context less likely (Keskar et al. 2019),
    None standing for 1.1, or for 1 where `temperature` is 0; `temperature` sharpens (below 1) or flattens, and 0 always
    takes the likeliest token; `top_k` (0 = off) keeps the k likeliest; `top_p` (1 = off) keeps the fewest that together
    reach that probability (Holtzman et al. 2020).
    """

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.9
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        if self.repetition_penalty is None:
            object.__setattr__(self, "repetition_penalty", 1.1 if self.temperature else 1.0)
        _check(0 <= self.temperature < math.inf, "--temp", self.temperature, "a number of at least 0")
        _check(self.top_k >= 0, "--top-k", self.top_k, "at least 0")
        _check(0 < self.top_p <= 1, "--top-p", self.top_p, "above 0 and at most 1")
        _check(0 < self.repetition_penalty < math.inf, "--rep-penalty", self.repetition_penalty, "a number above 0")


def load_model(checkpoint: Checkpoint, ops: Any) -> GPT:
    """The checkpoint's model on `ops`, for inference of one sequence.

    Raises UserError as `Checkpoint.weights` does, and if the memory is not there.
    """
    config = checkpoint.model
    needed = memory_bytes(config, 1, ops) + KVCache.bytes(config, ops) + largest_tensor(config)
    require_memory("this model", needed, ops.free_bytes(), "close other programs, or take another --device or machine")
    model = GPT(checkpoint.model, ops)
    model.load(checkpoint.weights())
    return model


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    num_tokens: int = 100,
    sampling: Sampling = Sampling(),
    eos_id: int = -1,
    seed: int = 0,
    max_seq_len: int | None = None,
) -> Iterator[str]:
    """Continue `prompt` by up to `num_tokens` tokens, yielding text as soon as it is certain.

    The pieces joined are decode(all ids) without decode(prompt ids) at its front; no piece ends within a character.
    Stops before `eos_id` if that is drawn. Every draw is a function of `seed` and its position alone. The model looks
    back on at most `max_seq_len` tokens (None: as many as it can), and so on the tail of a longer prompt.
    Raises UserError, before anything is computed, for values out of range, a prompt without a known token, and a
    tokenizer that is not the model's.
    """
    longest, vocab_size = model.config.max_seq_len, model.config.vocab_size
    window = longest if max_seq_len is None else max_seq_len
    _check(num_tokens >= 1, "--num-tokens", num_tokens, "at least 1")
    _check(1 <= window <= longest, "--max-seq-len", window, f"between 1 and the model's {longest}")
    _check(-1 <= eos_id < vocab_size, "--eos-id", eos_id, f"a token id below {vocab_size}, or -1 for none")
    _check(seed >= 0, "--seed", seed, "at least 0")
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model {vocab_size}: "
            "put the tokenizer.json back that the model was trained with"
        )
    ids = prompt_ids(tokenizer, prompt, "--prompt")
    return decoded(tokenizer, ids, draw(model, ids, num_tokens, sampling, eos_id, seed, window))


def prompt_ids(tokenizer: Tokenizer, prompt: str, flag: str) -> list[int]:
    """The ids of a prompt that was given with `flag`. Raises UserError if it has none, or is not valid text."""
    try:
        ids = tokenizer.encode(prompt)
    except ValueError:
        raise UserError(f"{flag} {shown(prompt)} is not valid text: give it in UTF-8") from None
    if not ids:
        raise UserError(
            f"{flag} {shown(prompt)} has no token that the model knows: begin with words of its training text"
        )
    return ids


def decoded(tokenizer: Tokenizer, prompt: list[int], drawn: Generator[int, None, None]) -> Iterator[str]:
    """The text of the drawn ids behind that of the prompt's, piece by piece as it becomes certain."""
    decoder = tokenizer.decoder()
    for id in prompt:
        decoder.feed(id)
    with closing(drawn):
        for id in drawn:
            yield decoder.feed(id)
    yield decoder.finish()


def draw(
    model: GPT, prompt: list[int], num_tokens: int, sampling: Sampling, eos_id: int, seed: int, window: int
) -> Generator[int, None, None]:
    """The ids that follow those of `prompt`, as `generate` says. Raises UserError where logits are not finite."""
    yield from Drawing(model, sampling).ids(prompt, num_tokens, eos_id, seed, window)


class Drawing:
    """Draws ids from a model. The cache, and what a device records of a step, are made once for any number of texts.

    A step finds the id that it decodes on the device, so the next may be asked for before the host knows it: the device
    then goes from step to step without a pause. Only a context that is decoded anew has to be known.
    """

    def __init__(self, model: GPT, sampling: Sampling) -> None:
        self._model, self._ops, self._sampling = model, model.ops, asdict(sampling)
        ops = model.ops
        self._inputs = ops.inputs(start=((1,), "int32"), uniform=((1,), "float64"))
        self._cache = KVCache(model.config, ops.zeros, self._inputs.device["start"])
        self._seen, self._drawn = ops.zeros(model.config.vocab_size, "uint8"), ops.zeros(1, "int32")
        self._output = ops.output(self._drawn)
        self._go_on = ops.replayed(lambda: self._step(self._drawn))

    def _step(self, ids: Array) -> None:
        """Decode ids, and draw the next one."""
        logits = self._model.decode(ids, self._cache)
        self._ops.sample(logits, self._seen, self._inputs.device["uniform"], out=self._drawn, **self._sampling)

    def ids(
        self, prompt: list[int], num_tokens: int, eos_id: int, seed: int, window: int
    ) -> Generator[int, None, None]:
        """The ids that follow those of `prompt`, one text at a time. Raises UserError where logits are not finite."""
        ops = self._ops
        context, length = prompt[-window:], 0  # ids, and how many positions are in the cache
        asked: deque[Callable[[], Array]] = deque()  # what waits for an id and gives it, of every step asked for
        try:
            for position in range(num_tokens):
                with self._inputs.written() as values:
                    values["start"][...] = length
                    values["uniform"][...] = _uniform(seed, position)
                if length:
                    self._go_on()
                    length += 1
                else:
                    ops.copy(np.isin(np.arange(self._seen.size), context).astype(np.uint8), out=self._seen)
                    self._step(ops.from_host(np.array(context, np.int32)))
                    length = len(context)
                asked.append(self._output.fetched())
                all_needed = length == window or position == num_tokens - 1
                while len(asked) > (0 if all_needed else ops.steps_ahead):
                    id = _checked(int(asked[0]()[0]))
                    asked.popleft()  # not before: whatever interrupts the wait, `finally` waits again
                    if id == eos_id:
                        return
                    yield id
                    context.append(id)
                if length == window:
                    context, length = context[-max(1, window // 2) :], 0
        finally:  # the device may still be at a step whose id nobody wants, using memory that may be freed now
            for wait in asked:
                wait()


def _checked(id: int) -> int:
    """An id that was drawn; raises UserError for the -1 that stands for none."""
    if id < 0:
        raise UserError("the model's logits are not finite, as its training diverged: take an earlier --step")
    return id


def _uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that is a function of the two alone."""
    return np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, position], np.uint64))).random()
