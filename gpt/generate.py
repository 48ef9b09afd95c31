"""Text from a trained model: one that is streamed, or many at once, through a decoder (gpt/decoder.py)."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice, takewhile
from typing import NamedTuple

from gpt.arithmetic import ceil_div
from gpt.checkpoint import Checkpoint, largest_tensor
from gpt.config import NO_EOS, NUM_TOKENS, ModelConfig, SamplingConfig, TrainConfig, check
from gpt.decoder import Decoder, Request, Sequence, Stream
from gpt.errors import UserError, shown
from gpt.model import GPT, KVCache, memory_bytes
from gpt.ops.interface import Operations
from gpt.parameters import padded_vocab
from gpt.stops import Stops
from gpt.system.limits import require_memory
from gpt.tokenizer import Tokenizer

MOST_PLACES = 64  # texts that are written at once: beyond, a GPU gains little
MOST_SAMPLES = 10_000  # of a prompt
_USUAL = SamplingConfig()  # the default of `generate`


class Text(NamedTuple):
    """What the model wrote after a prompt: `prompt` and `sample` are its numbers, from 0 on."""

    prompt: int
    sample: int
    continuation: str


def load_model(checkpoint: Checkpoint, ops: Operations, places: int = 1, batch: int = 1) -> GPT:
    """The checkpoint's model on `ops`, for inference, with activations to write so many texts at once.

    It can also read whole sequences, `batch` of them at once.

    Raises UserError as `Checkpoint.weights` does, and if the memory is not there.
    """
    config = checkpoint.model_config
    advice = "close other programs, or take another --device or machine"
    require_memory("this model", _needed(config, ops, places, batch), ops.free_bytes(), advice)
    ops.check_products(config, batch)
    model = GPT(config, ops, max(batch, batch_for(config, places)))
    model.load(checkpoint.weights().items())
    return model


def fitting(config: ModelConfig, ops: Operations, texts: int) -> int:
    """How many of these texts can be written at once, in the memory that is free before the model is made."""
    free = ops.free_bytes()
    return next((count for count in range(min(texts, MOST_PLACES), 1, -1) if _needed(config, ops, count) <= free), 1)


def batch_for(config: ModelConfig, places: int) -> int:
    """Sequences of the model's length whose activations have a row for each place."""
    return ceil_div(places, config.max_seq_len)


def _needed(config: ModelConfig, ops: Operations, places: int, batch: int = 1) -> int:
    """Bytes for `load_model` and a decoder with so many places. Drawing a token takes some 40 bytes for each logit."""
    place = KVCache.bytes(config, ops) + 40 * padded_vocab(config, ops.vocab_multiple)
    sequences = max(batch, batch_for(config, places))
    return memory_bytes(config, sequences, ops) + places * place + ops.loading_bytes(largest_tensor(config))


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    num_tokens: int = NUM_TOKENS,
    sampling: SamplingConfig = _USUAL,
    eos_id: int = NO_EOS,
    stops: Iterable[str] = (),
    seed: int = TrainConfig.seed,
    sample: int = 0,
    max_seq_len: int | None = None,
) -> Generator[str, None, None]:
    """Continue `prompt` by up to `num_tokens` tokens, yielding text as soon as it is certain.

    Yields a text for each token, perhaps an empty one, and one more at the end. The joined texts are decode(all ids)
    without decode(prompt ids) at its front. No text ends within a character. Generation stops before `eos_id` if that
    is drawn, and before the first of `stops`. Every draw depends on `seed`, `sample` and its position alone.
    The model looks back on at most `max_seq_len` tokens (None: as many as it can), so it sees only the end of a longer
    prompt. Raises UserError, before anything is computed, for values out of range, a prompt without a known token, and
    a tokenizer that is not the model's.

    Example:
        run = Run("first")
        model, tokenizer = load_model(checkpoint.load(run), select("auto")), Tokenizer.load(run.tokenizer_path)
        for text in generate(model, tokenizer, "On a bright morning", num_tokens=50):
            print(text, end="", flush=True)
    """
    window = _checked_window(model, tokenizer, num_tokens, eos_id, seed, max_seq_len)
    ids = prompt_ids(tokenizer, prompt, "--prompt")
    drawn = draw(model, ids, num_tokens, sampling, eos_id, seed, window, sample)
    return streamed(tokenizer, ids, drawn, Stops(stops).texts)


def generate_many(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: list[tuple[str, str]],
    *,
    num_samples: int = 1,
    places: int = MOST_PLACES,
    num_tokens: int = NUM_TOKENS,
    sampling: SamplingConfig = _USUAL,
    eos_id: int = NO_EOS,
    stops: Iterable[str] = (),
    seed: int = TrainConfig.seed,
    max_seq_len: int | None = None,
) -> Iterator[Text]:
    """Continue each prompt `num_samples` times, up to `places` texts at once; yields the texts in order.

    Each of `prompts` is the name that an error message gives it, and its text. A text depends on the seed and on the
    numbers of its prompt and its sample, but not on how many others there are, nor on `places`: text 0 of prompt 0 is
    the one that `generate` writes. Raises UserError as `generate` does.
    """
    check(1 <= num_samples <= MOST_SAMPLES, "num_samples", num_samples, f"from 1 to {MOST_SAMPLES}")
    window = _checked_window(model, tokenizer, num_tokens, eos_id, seed, max_seq_len)
    encoded, stops = [prompt_ids(tokenizer, text, name) for name, text in prompts], Stops(stops).texts
    requests = (
        Request(ids, num_tokens, sampling, eos_id, Stream(seed, prompt, sample), window)
        for prompt, ids in enumerate(encoded)
        for sample in range(num_samples)
    )
    decoder = Decoder(model, min(places, num_samples * len(prompts), len(model.workspace.logits)))
    return _in_turns(decoder, tokenizer, requests, stops)


def _in_turns(
    decoder: Decoder, tokenizer: Tokenizer, requests: Iterator[Request], stops: Iterable[str]
) -> Iterator[Text]:
    """The texts of all requests, in their order. A request takes the place of one that has ended."""
    drafts: dict[Sequence, list[str]] = {}  # the pieces of each text that was not yielded yet, in order
    continuations: dict[Sequence, Continuation] = {}
    try:
        while True:
            for request in islice(requests, decoder.free):
                sequence = decoder.join(request)
                drafts[sequence], continuations[sequence] = [], Continuation(tokenizer, request.prompt, stops)
            if not drafts:
                return
            for sequence, id in decoder.step():
                if id is not None:
                    drafts[sequence].append(continuations[sequence].feed(id))
                    if continuations[sequence].is_stopped:
                        decoder.leave(sequence)
            for sequence in list(takewhile(lambda each: each.ended, drafts)):
                text, stream = "".join(drafts.pop(sequence)), sequence.request.stream
                yield Text(stream.prompt, stream.sample, text + continuations.pop(sequence).finish())
    finally:
        decoder.settle()


def _checked_window(
    model: GPT, tokenizer: Tokenizer, num_tokens: int, eos_id: int, seed: int, max_seq_len: int | None
) -> int:
    """The context length, if it and the other values are possible."""
    longest, vocab_size = model.config.max_seq_len, model.config.vocab_size
    window = longest if max_seq_len is None else max_seq_len
    check(num_tokens >= 1, "num_tokens", num_tokens, "at least 1")
    if not 1 <= window <= longest:
        raise UserError(f"--max-seq-len is {window}, but must be between 1 and the model's {longest}")
    check(-1 <= eos_id < vocab_size, "eos_id", eos_id, f"a token id below {vocab_size}, or -1 for none")
    check(seed >= 0, "seed", seed, "at least 0")
    model.config.check_tokenizer("the tokenizer", tokenizer.vocab_size)
    return window


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


class Continuation:
    """The text of ids that follow those of a prompt, as far as it is certain, and up to the first of `stops`."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int], stops: Iterable[str] = ()) -> None:
        self._stops, self._decoder = Stops(stops), tokenizer.decoder()
        for id in prompt:
            self._decoder.feed(id)

    @property
    def is_stopped(self) -> bool:
        return self._stops.found

    def feed(self, id: int) -> str:
        return self._stops.feed(self._decoder.feed(id))

    def finish(self) -> str:
        """The rest, when no more ids come."""
        return self._stops.feed(self._decoder.finish()) + self._stops.finish()


def streamed(
    tokenizer: Tokenizer, prompt: list[int], drawn: Generator[int, None, None], stops: Iterable[str] = ()
) -> Generator[str, None, None]:
    """The text of each drawn id, and the rest. Drawing ends when this does."""
    continuation = Continuation(tokenizer, prompt, stops)
    with closing(drawn):
        for id in drawn:
            yield continuation.feed(id)
            if continuation.is_stopped:
                break
    yield continuation.finish()


def draw(
    model: GPT, prompt: list[int], num_tokens: int, sampling: SamplingConfig, eos_id: int, seed: int, window: int,
    sample: int = 0,
) -> Generator[int, None, None]:  # fmt: skip
    """The ids that follow those of `prompt`, as `generate` describes. Raises UserError if logits are not finite."""
    stream = Stream(seed, sample=sample)
    yield from Decoder(model, places=1).ids(Request(prompt, num_tokens, sampling, eos_id, stream, window))
