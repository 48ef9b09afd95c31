"""Text from a trained model: one token at a time, sampled, decoded and streamed.

Keys and values of past positions are cached, so a token costs the work of one position. The model's positions are
learned, so a full window cannot be shifted. Its last half is decoded again from position 0 and becomes the new context.
That costs half a window of work for every half a window of tokens, so a token of a long text costs two positions.

For example, with a window of 8 the cache holds positions 0 to 7 after 8 tokens. The last 4 tokens are then decoded
again as positions 0 to 3, and the next 4 tokens fill positions 4 to 7.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing

import numpy as np

from gpt.checkpoint import Checkpoint, largest_tensor
from gpt.config import NO_EOS, NUM_TOKENS, SamplingConfig, TrainConfig, check
from gpt.errors import UserError, shown
from gpt.model import GPT, KVCache, memory_bytes
from gpt.ops.interface import Array, Operations, SamplingRule
from gpt.system.limits import require_memory
from gpt.tokenizer import Tokenizer

_USUAL = SamplingConfig()  # the default of `generate`


def load_model(checkpoint: Checkpoint, ops: Operations, batch: int = 1) -> GPT:
    """The checkpoint's model on `ops`, for inference of up to `batch` sequences at once.

    Raises UserError as `Checkpoint.weights` does, and if the memory is not there.
    """
    config = checkpoint.model_config
    needed = memory_bytes(config, batch, ops) + KVCache.bytes(config, ops) + largest_tensor(config)
    require_memory("this model", needed, ops.free_bytes(), "close other programs, or take another --device or machine")
    ops.check_products(config, batch)
    model = GPT(checkpoint.model_config, ops, batch)
    model.load(checkpoint.weights().items())
    return model


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    num_tokens: int = NUM_TOKENS,
    sampling: SamplingConfig = _USUAL,
    eos_id: int = NO_EOS,
    seed: int = TrainConfig.seed,
    max_seq_len: int | None = None,
) -> Iterator[str]:
    """Continue `prompt` by up to `num_tokens` tokens, yielding text as soon as it is certain.

    The joined texts are decode(all ids) without decode(prompt ids) at its front. No text ends within a character.
    Generation stops before `eos_id` if that is drawn. Every draw depends on `seed` and its position alone. The model
    looks back on at most `max_seq_len` tokens (None: as many as it can), so it sees only the end of a longer prompt.
    Raises UserError, before anything is computed, for values out of range, a prompt without a known token, and a
    tokenizer that is not the model's.

    Example:
        run = Run("first")
        model, tokenizer = load_model(checkpoint.load(run), select("auto")), Tokenizer.load(run.tokenizer_path)
        for text in generate(model, tokenizer, "On a bright morning", num_tokens=50):
            print(text, end="", flush=True)
    """
    longest, vocab_size = model.config.max_seq_len, model.config.vocab_size
    window = longest if max_seq_len is None else max_seq_len
    check(num_tokens >= 1, "num_tokens", num_tokens, "at least 1")
    if not 1 <= window <= longest:
        raise UserError(f"--max-seq-len is {window}, but must be between 1 and the model's {longest}")
    check(-1 <= eos_id < vocab_size, "eos_id", eos_id, f"a token id below {vocab_size}, or -1 for none")
    check(seed >= 0, "seed", seed, "at least 0")
    model.config.check_tokenizer("the tokenizer", tokenizer.vocab_size)
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
    """The text of each drawn id, as soon as it is certain. The decoder reads the prompt's ids first."""
    decoder = tokenizer.decoder()
    for id in prompt:
        decoder.feed(id)
    with closing(drawn):
        for id in drawn:
            yield decoder.feed(id)
    yield decoder.finish()


def draw(
    model: GPT, prompt: list[int], num_tokens: int, sampling: SamplingConfig, eos_id: int, seed: int, window: int
) -> Generator[int, None, None]:
    """The ids that follow those of `prompt`, as `generate` describes. Raises UserError if logits are not finite."""
    yield from Drawing(model, sampling).ids(prompt, num_tokens, eos_id, seed, window)


class Drawing:
    """Draws ids from a model. The cache and the recorded graph of a step are made once, for any number of texts.

    Each step reads its input id from device memory, so the host can queue the next step before it has seen the id, and
    the device goes from step to step without a pause. Only decoding a new context needs the ids on the host.
    """

    def __init__(self, model: GPT, sampling: SamplingConfig) -> None:
        self._model, self._ops, self._sampling = model, model.ops, sampling
        ops = model.ops
        self._inputs = ops.inputs(start=((1,), "int32"), uniform=((1,), "float64"))
        self._cache = KVCache(model.config, ops.zeros, self._inputs.device["start"])
        self._seen, self._drawn = ops.zeros(model.config.vocab_size, "uint8"), ops.zeros(1, "int32")
        self._output = ops.output(self._drawn)
        self._go_on = ops.replayed(lambda: self._step(self._drawn))

    def _step(self, ids: Array) -> None:
        """Decode ids (int32 [n]), and draw the next one."""
        logits, sampling = self._model.decode(ids, self._cache), self._sampling
        rule = SamplingRule(sampling.temperature, sampling.top_k, sampling.top_p, sampling.penalty)
        self._ops.sample(logits, self._seen, self._inputs.device["uniform"], out=self._drawn, rule=rule)

    def ids(
        self, prompt: list[int], num_tokens: int, eos_id: int, seed: int, window: int
    ) -> Generator[int, None, None]:
        """The ids that follow those of `prompt`, for one text at a time. Raises UserError if logits are not finite."""
        ops = self._ops
        context, length = prompt[-window:], 0  # ids to look back on, and the number of positions in the cache
        queued: deque[Callable[[], Array]] = deque()  # for each queued step, a function that waits and returns its id
        try:
            for position in range(num_tokens):
                # Queue a step: one more position, or, with an empty cache, the whole context.
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
                queued.append(self._output.fetched())

                # Take ids until few enough steps are queued; a new context and the end need all of them.
                all_needed = length == window or position == num_tokens - 1
                while len(queued) > (0 if all_needed else ops.steps_ahead):
                    id = _checked(int(queued[0]()[0]), ops)
                    queued.popleft()  # only now: if something interrupts the wait, `finally` waits again
                    if id == eos_id:
                        return
                    yield id
                    context.append(id)

                # A full window: its last half becomes the context of an empty cache.
                if length == window:
                    context, length = context[-max(1, window // 2) :], 0
        finally:  # the device may still work on steps whose ids nobody wants, in memory that may be freed now
            for wait in queued:
                wait()


def _checked(id: int, ops: Operations) -> int:
    """A drawn id. Raises UserError for -1, which stands for logits that are not finite."""
    if id < 0:
        library = ", or try --blas own, in case the GPU vendor's library is at fault" if ops.has_vendor_blas else ""
        raise UserError(f"the model's logits are not finite, as its training diverged: take an earlier --step{library}")
    return id


def _uniform(seed: int, position: int) -> float:
    """A random number in [0, 1) that depends on `seed` and `position` alone."""
    return np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, position], np.uint64))).random()
