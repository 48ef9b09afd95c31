"""How good a model is: its loss on text that it was not trained on, and a sample of what it writes."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gpt.arithmetic import ceil_div
from gpt.batches import Batches
from gpt.config import NO_EOS, SamplingConfig, TrainConfig
from gpt.decoder import Decoder, Request, Stream
from gpt.distributed.collectives import Exchange
from gpt.distributed.ranks import ALONE, Ranks
from gpt.generate import prompt_ids, streamed
from gpt.model import GPT
from gpt.tokenizer import Tokenizer
from gpt.tokens import Tokens

_BLOCK = 1 << 20  # tokens that are counted at a time
_MOST_BLOCKS = 32  # blocks of any text that are counted: that takes a quarter of a second, and reads 128 MiB, at most
_PROMPT = 8  # tokens of the text at the beginning of a sample
_SAMPLE = 40  # tokens that the model adds


@dataclass(frozen=True)
class Metrics:
    """Means over the tokens of a step or an evaluation. The loss is in nats per token.

    An evaluation has the loss in bits per byte of text, too. For example 40 tokens that stand for 100 bytes, at a loss
    of 2.0, have 2.0 / ln 2 · 40 / 100 = 1.154 bits per byte. Tokens that stand for no byte have None.
    """

    loss: float
    accuracy: float
    bits_per_byte: float | None = None

    @classmethod
    def of(cls, sums: np.ndarray, tokens: int, text_bytes: int | None = None) -> "Metrics":
        """Metrics from the sums over `tokens` tokens that a model keeps: of their losses, and of the right guesses."""
        loss = float(sums[0]) / tokens
        return cls(loss, float(sums[1]) / tokens, _bits_per_byte(loss, tokens, text_bytes))

    @property
    def perplexity(self) -> float:
        return math.inf if self.loss > 700 else math.exp(self.loss)

    def __str__(self) -> str:
        bits = "" if self.bits_per_byte is None else f" | Bits/byte: {self.bits_per_byte:.3f}"
        return f"Loss: {self.loss:.4f} | Perplexity: {self.perplexity:.2f} | Accuracy: {self.accuracy:.2%}{bits}"


class HeldOut:
    """The held-out text of `batches`, on which a model is evaluated.

    A model predicts tokens, and each tokenizer cuts a text into other tokens. Bits per byte of text make their losses
    comparable. The bytes counted are exactly those that the predicted tokens decode to (`Tokenizer.byte_lengths`).
    """

    def __init__(self, model: GPT, batches: Batches, tokenizer: Tokenizer, ranks: Ranks = ALONE) -> None:
        self._model, self._ops, self._batches, self._ranks = model, model.ops, batches, ranks
        self._byte_lengths = tokenizer.byte_lengths()

    def evaluate(self, stopped: Callable[[], bool]) -> Metrics | None:
        """The model's metrics, or None if no text is held out, or if `stopped` becomes true before the end.

        Several ranks share out the batches, and all get the same metrics.
        """
        ranks = self._ranks
        self._ops.clear(self._model.metrics)
        tokens = text_bytes = 0
        for number, (ids, labels) in enumerate(self._batches.validation()):
            if stopped():
                return None
            if number % ranks.size == ranks.rank:
                self._model.loss(self._ops.from_host(ids), self._ops.from_host(labels))
            labels = labels[labels >= 0]  # the others do not count
            tokens += labels.size
            text_bytes += self._bytes(labels)
        if ranks.size > 1:
            ranks.collectives.reduce([Exchange(self._model.metrics)])
            ranks.collectives.wait()
        return Metrics.of(self._ops.to_host(self._model.metrics), tokens, text_bytes) if tokens else None

    def guess(self) -> tuple[float, float | None]:
        """The loss of guessing each token by its frequency, in nats per token and in bits per byte (see `Metrics`).

        It is the cross-entropy of the tokens that `evaluate` predicts, under the frequencies of the tokens of the
        training part (plus one, so that no token is impossible). If that has more than 32 blocks of 2^20 tokens, 32
        evenly spread blocks are counted. Frequencies of 3, 0 and 1 in a vocabulary of 3 give probabilities of 4/7, 1/7
        and 2/7.
        """
        counts = 1 + _frequencies(self._batches.tokens, self._batches.train_tokens, len(self._byte_lengths))
        losses = np.log(counts.sum()) - np.log(counts)
        total, tokens, text_bytes = 0.0, 0, 0
        for _, labels in self._batches.validation():
            labels = labels[labels >= 0]
            total += float(losses[labels].sum())
            tokens += labels.size
            text_bytes += self._bytes(labels)
        return total / tokens, _bits_per_byte(total / tokens, tokens, text_bytes)

    def _bytes(self, labels: np.ndarray) -> int:
        return int(self._byte_lengths[labels].sum())


class Samples:
    """Short texts that a model writes while it is trained, from the same prompt and with the same draws each time.

    The prompt is `train_config.sample_prompt`, or else the beginning of the held-out text (if none is held out, of the
    whole text). The arrays for decoding are allocated here, once. Decoding also uses the model's activations, which
    every pass writes anew, and nothing else that training reads. Raises UserError for a prompt without a known token.
    """

    def __init__(self, model: GPT, batches: Batches, tokenizer: Tokenizer, train_config: TrainConfig) -> None:
        self._tokenizer, self._seed, self._window = tokenizer, train_config.seed, model.config.max_seq_len
        if train_config.sample_prompt is None:
            first = batches.train_tokens if batches.val_tokens >= _PROMPT else 0
            self._prompt = batches.tokens[first : first + _PROMPT].tolist()
        else:
            self._prompt = prompt_ids(tokenizer, train_config.sample_prompt, "--sample-prompt")
        self._decoder = Decoder(model, places=1)

    def text(self) -> str:
        """The prompt and 40 more tokens. Raises UserError if logits are not finite."""
        request = Request(self._prompt, _SAMPLE, SamplingConfig(), NO_EOS, Stream(self._seed), self._window)
        continued = "".join(streamed(self._tokenizer, self._prompt, self._decoder.ids(request)))
        return self._tokenizer.decode(self._prompt) + continued


def printable(text: str) -> str:
    """A text that is safe to show on a terminal: tabs become spaces, other control characters but line ends "·"."""
    shown = (c if c.isprintable() or c == "\n" else "·" for c in text.expandtabs(4))
    return "".join(shown)


def _bits_per_byte(loss: float, tokens: int, text_bytes: int | None) -> float | None:
    return loss / math.log(2) * tokens / text_bytes if text_bytes else None


def _frequencies(tokens: Tokens, first: int, vocab_size: int) -> np.ndarray:
    """How often each id occurs in the `first` ids of `tokens`, int64 [vocab_size]; of many, in evenly spread blocks.

    For example 64 blocks are too many: every second one is counted. A block is read at a time, because tokens in many
    files may be more than fit the memory.
    """
    blocks = ceil_div(first, _BLOCK)
    chosen = min(blocks, _MOST_BLOCKS)
    counts = np.zeros(vocab_size, np.int64)
    for number in range(chosen):
        start = number * blocks // chosen * _BLOCK
        counts += np.bincount(tokens[start : min(start + _BLOCK, first)], minlength=vocab_size)
    return counts
