"""The tokens of a run on disk: opened, and checked before they are used."""

from dataclasses import dataclass

import numpy as np

from gpt import provenance
from gpt.corpus.conversations import write_counted
from gpt.errors import UserError
from gpt.provenance import Info, Report
from gpt.run import Run
from gpt.system.files import atomic_path, write_atomically
from gpt.tokenizer import Tokenizer
from gpt.tokens import Tokens

_IDS_AT_ONCE = 1 << 24  # ids that the search for foreign ones reads at a time


@dataclass(frozen=True)
class Corpus:
    """A tokenized text: its tokenizer, its tokens, mapped into memory, and its tokens.json.

    `counted`, uint8 [n], is 1 for the tokens that a model shall learn, if these are not all of them.
    """

    tokenizer: Tokenizer
    tokens: Tokens
    info: Info
    counted: np.ndarray | None = None

    @property
    def val_fraction(self) -> float | None:
        """The part of the tokens, from their end, that is the held-out text; None if it has no sources of its own.

        It lies between two tokens, so that floor(n · val_fraction) is the exact number whatever the rounding.
        """
        return (self.info["held_out"]["count"] + 0.5) / self.info["count"] if "held_out" in self.info else None


def opened(run: Run, tokenizer: Tokenizer, info: Info) -> Corpus:
    """The tokens that `info` describes, mapped into memory and not checked."""
    return Corpus(tokenizer, provenance.tokens_of(run, info), info, provenance.counted_of(run, info))


def kept(run: Run, text: str, tokenizer: Tokenizer, info: Info, current: Info, report: Report) -> Corpus:
    """The tokens on disk. Raises UserError if they are not those that were written, or not this tokenizer's.

    `info` is tokens.json as it is, and `current` the same with the text's section as it should be.
    """
    current["tokens"] = provenance.check_file(
        run.tokens_path, info["tokens"], f"{run.tokens_path} is not what was written",
        f"put it back, or delete it to encode {text} again",
    )  # fmt: skip
    if "counted" in info:
        current["counted"] = _kept_counted(run, text, tokenizer, info, report)
    if not run.has_weights and info["dropped"]:
        raise_if_lossy(text, info["dropped"], info["characters"])
        report(
            f"Note: {text} has lost {info['dropped']:,} of its {info['characters']:,} characters, which the vocabulary "
            "lacks; --tokenizer byte would keep every character"
        )
    if current.get("checked") != (checked := provenance.pair_digest(current)):
        largest = _largest(opened(run, tokenizer, current).tokens)
        if largest >= tokenizer.vocab_size:
            raise UserError(
                f"{run.tokens_path} has the id {largest}, but the tokenizer has {tokenizer.vocab_size} tokens: "
                f"put the right file back, or delete it to encode {text} again"
            )
        current["checked"] = checked
    if current != info:  # a new time or place for the same content: remember it, to save the digest next time
        write_atomically(run.tokens_info_path, provenance.to_json(current))
    return opened(run, tokenizer, current)


def _kept_counted(run: Run, text: str, tokenizer: Tokenizer, info: Info, report: Report) -> Info:
    """The section of tokens.json about counted.bin, which is made again if it is missing.

    Raises UserError if it is not what was written, or if the tokens do not tell what it was.
    """
    if run.counted_path.exists():
        complaint, advice = f"{run.counted_path} is not what was written", "put it back, or delete it to make it again"
        return provenance.check_file(run.counted_path, info["counted"], complaint, advice)
    report(f"Note: {run.counted_path} is missing: making it again")
    with atomic_path(run.counted_path) as temporary:
        write_counted(provenance.tokens_of(run, info), temporary, tokenizer)
        if provenance.sha256(temporary) != info["counted"]["sha256"]:  # some of the answers are not learned
            raise UserError(
                f"{run.counted_path} does not follow from {run.tokens_path} alone: put it back, or delete "
                f"{run.tokens_path} to encode {text} again"
            )
    return {**info["counted"], **provenance.stamp(run.counted_path)}


def _largest(tokens: Tokens) -> int:
    """The largest id. It takes reading all tokens, so tokens.json remembers that they were checked."""
    return max(int(tokens[first : first + _IDS_AT_ONCE].max()) for first in range(0, len(tokens), _IDS_AT_ONCE))


def raise_if_lossy(text: str, dropped: int, characters: int) -> None:
    """Raises UserError if a vocabulary lacks more than half of a text's characters."""
    if 2 * dropped > characters:
        raise UserError(
            f"{dropped:,} of the {characters:,} characters of {text} are not in the vocabulary, and tokens that lack "
            "more than half of a text are of no use: give another text, or use --tokenizer byte or a larger "
            "--vocab-size for a new run"
        )


def is_text_of(run: Run, corpus: Corpus) -> bool:
    """Whether a run's tokens were made from the very text of `corpus`. False if nothing says so."""
    info = provenance.read(run)
    return info is not None and provenance.identity(info) == provenance.identity(corpus.info)
