"""The score of a trained model on a whole text: loss, perplexity, accuracy and bits per byte.

Each token is predicted exactly once. The text is cut into windows of the model's context length, one after the other,
and the token before a window, or `<|endoftext|>` before the first one, is where the model begins to read. So the first
token of a window is predicted from one token, and the last one from as many as the model can look back on. The last
window reaches back, so that it is as long as the others, but only its new tokens count. These are the windows of
lm-evaluation-harness's rolling log-likelihood (https://github.com/EleutherAI/lm-evaluation-harness), so the numbers can
be compared with published ones.

For example, 10 tokens t1 … t10 and a context of 4, with e for `<|endoftext|>`:

    reads     e t1 t2 t3      t4 t5 t6 t7      t6 t7 t8 t9
    predicts  t1 t2 t3 t4     t5 t6 t7 t8            t9 t10

`gpt/evaluation.py` is quicker, for the evaluations during a training: it reads a sample of the held-out text.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from gpt import provenance
from gpt.chat_template import Learned, is_used_by, without_signs
from gpt.checkpoint import Checkpoint
from gpt.corpus import Sources
from gpt.corpus.text_file import LeftOut
from gpt.encode import end_mark
from gpt.errors import UserError
from gpt.evaluation import Metrics
from gpt.model import GPT
from gpt.tokenizer import Tokenizer

BATCH = 8  # windows that go through the model at a time
_IDS_AT_ONCE = 1 << 20  # ids of tokens.bin that are read at a time

Advance = Callable[..., None]  # takes the bytes or tokens done so far, and `total`, the number of all of them
Counts = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Takes the next ids of a text. Returns those that a model reads, and 1 or 0 for each: whether it counts. `Learned`."""


class Windows(NamedTuple):
    """Neighboring windows: int32 [rows, seq] ids and labels. The last `scored` labels of each row count."""

    ids: np.ndarray
    labels: np.ndarray
    scored: int


class Score(NamedTuple):
    """A model's score on a text of so many predicted tokens, which stand for so many bytes."""

    metrics: Metrics
    tokens: int
    text_bytes: int

    def to_json(self) -> dict[str, Any]:
        found = self.metrics
        return {
            "tokens": self.tokens, "bytes": self.text_bytes, "loss": found.loss, "perplexity": found.perplexity,
            "bits_per_byte": found.bits_per_byte, "accuracy": found.accuracy,
        }  # fmt: skip


def rolling_windows(
    blocks: Iterable[np.ndarray], seq: int, first: int | None, counts: Counts | None = None
) -> Iterator[Windows]:
    """The windows of a text whose ids come in blocks, integers [n] each; see the top of this file.

    `first` is the id that the model reads before the text. If it is None, the text's first token is not predicted.
    Labels of tokens that do not count are -1.

    Example:

    >>> for ids, labels, scored in rolling_windows([np.arange(1, 7), np.arange(7, 11)], seq=4, first=0):
    ...     print(ids.tolist(), labels.tolist(), scored)
    [[0, 1, 2, 3]] [[1, 2, 3, 4]] 4
    [[4, 5, 6, 7]] [[5, 6, 7, 8]] 4
    [[6, 7, 8, 9]] [[7, 8, 9, 10]] 2
    """
    stream = wanted = np.array([] if first is None else [first], np.int32)  # the ids, and the same as labels
    start = 0  # of the next window in `stream`, which keeps up to `seq` ids before it
    for block in blocks:
        ids = labels = block.astype(np.int32)
        if counts is not None:
            ids, counted = counts(ids)
            labels = np.where(counted, ids, -1).astype(np.int32)
        before = max(0, start - seq)
        stream, wanted = np.concatenate([stream[before:], ids]), np.concatenate([wanted[before:], labels])
        start = min(start, seq)
        count = max(0, len(stream) - 1 - start) // seq
        if count:
            end = start + count * seq
            yield Windows(stream[start:end].reshape(count, seq), wanted[start + 1 : end + 1].reshape(count, seq), seq)
            start = end
    if (left := len(stream) - 1 - start) > 0:
        begin = max(0, len(stream) - 1 - seq)
        yield Windows(stream[None, begin:-1], wanted[None, begin + 1 :], left)


def counts_of(tokenizer: Tokenizer) -> Counts | None:
    """What counts in a text: in conversations, the tokens that a model learns (gpt/chat_template.py). None: all."""
    return Learned.by(tokenizer) if is_used_by(tokenizer) and tokenizer.end_of_text is not None else None


def score(model: GPT, tokenizer: Tokenizer, blocks: Iterable[np.ndarray], counts: Counts | None = None) -> Score:
    """The score of a model, made for BATCH sequences, on a text whose ids come in blocks (integers [n] each).

    Without `counts`, all tokens count. Raises UserError if the text has no token to predict.
    """
    lengths, ops = tokenizer.byte_lengths(), model.ops
    sums, tokens, text_bytes = np.zeros(2), 0, 0
    for windows in rolling_windows(blocks, model.config.max_seq_len, tokenizer.end_of_text, counts):
        for first in range(0, len(windows.ids), BATCH):
            ids, labels = (each[first : first + BATCH] for each in windows[:2])
            found = model.token_losses(ops.from_host(ids), ops.from_host(labels))
            predicted = labels[:, -windows.scored :]
            scored = predicted >= 0
            sums += [each[:, -windows.scored :].sum(dtype=np.float64, where=scored) for each in found]
            predicted = predicted[scored]
            tokens += predicted.size
            text_bytes += int(lengths[predicted].sum())
    if not tokens:
        raise UserError("the text has no token to predict: give a longer one with --data-path")
    return Score(Metrics.of(sums, tokens, text_bytes), tokens, text_bytes)


def ids_of(text: Sources, tokenizer: Tokenizer, advance: Advance, left_out: LeftOut) -> Iterator[np.ndarray]:
    """The ids of a text, block by block, for the `counts_of` the tokenizer.

    `left_out` is told of documents without text. Raises UserError if the text cannot be read, as `Sources.blocks` does.
    """
    done, as_text = 0, not is_used_by(tokenizer) and text.with_conversations

    def count(data: bytes) -> None:
        nonlocal done
        done += len(data)

    def blocks() -> Iterator[str]:
        mark, cut = end_mark(text, tokenizer), tokenizer.last_cut
        for block in text.blocks(watch=count, mark=mark, left_out=left_out, cut=cut):
            yield without_signs(block) if as_text else block
            advance(done, total=text.size)

    return tokenizer.encode_blocks(blocks())


def held_out(saved: Checkpoint, advance: Advance) -> tuple[Iterator[np.ndarray], Counts | None]:
    """The ids of the text that a run held out, block by block, and which of them count.

    Raises UserError if there are none, or if they are not those that the run was trained beside.
    """
    run, info = saved.run, provenance.read(saved.run)
    if info is None or (not run.tokens_path.exists() and "token_files" not in info):
        raise UserError(f"{run.path} has no text of its own: name one with --data-path")
    provenance.check_tokens(run, info, "is not what was written", "name a text with --data-path")
    tokens = provenance.tokens_of(run, info)
    begin = len(tokens) - math.floor(len(tokens) * saved.train_config.val_fraction)
    if begin == len(tokens):
        raise UserError(f"{run.path} holds out nothing of its text: name another text with --data-path")

    def blocks() -> Iterator[np.ndarray]:
        for start in range(begin, len(tokens), _IDS_AT_ONCE):
            end = min(start + _IDS_AT_ONCE, len(tokens))
            yield tokens[start:end]
            advance(end - begin, total=len(tokens) - begin)

    if (counted := provenance.counted_of(run, info)) is None:
        return blocks(), None
    place = begin

    def counts(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nonlocal place
        place += len(ids)
        return ids, counted[place - len(ids) : place]

    return blocks(), counts
