"""The settings of a text and of its tokenizer, and the usual places of texts and runs."""

import codecs
from dataclasses import dataclass

from gpt.config.fields import check, pick
from gpt.config.presets import PRESETS

DATA_PATH = "data/data.txt"
RUNS_DIR, RUNS_DIR_VARIABLE = "checkpoints", "HIPGPT_RUNS_DIR"

_SAMPLE = "the cat sat on the mat, and the dog sat on the cat, and so on and on\n"  # no host name is that long


@dataclass(frozen=True)
class DataConfig:
    """The text that the user's flags name, and how it is to be read, or the tokens that another program has made.

    `sample` is how many bytes of the text a tokenizer learns from. None stands for a flag that was left out. Raises
    UserError for an encoding that Python does not know, and for a sample of nothing.
    """

    data_path: tuple[str, ...] = ()
    encoding: str | None = None
    text_field: str | None = None
    val_path: tuple[str, ...] = ()
    shuffle_documents: int | None = None
    tokens: tuple[str, ...] = ()
    val_tokens: tuple[str, ...] = ()
    sample: int | None = None

    def __post_init__(self) -> None:
        check(self.sample is None or self.sample >= 1, "sample", self.sample, "at least 1")
        if self.encoding is not None:
            is_one = _is_of_texts(self.encoding)
            check(is_one, "encoding", self.encoding or "empty", "that of a text, such as latin-1, cp1252 or gb18030")
            object.__setattr__(self, "encoding", codecs.lookup(self.encoding).name)


def _is_of_texts(encoding: str) -> bool:
    """Whether Python knows an encoding that decodes a text bit by bit. Those of host names do not: punycode, idna."""
    try:
        data = _SAMPLE.encode(encoding)  # LookupError for a codec of something else than text, too
        return "".join(codecs.iterdecode((data[i : i + 1] for i in range(len(data))), encoding)) == _SAMPLE
    except (LookupError, UnicodeError):
        return False


@dataclass(frozen=True)
class TokenizerConfig:
    """The kind of a tokenizer that learns, one of TOKENIZERS, the largest vocabulary that it may learn, and choices.

    `split` is the pattern that cuts a text into words for the kind `byte`, one of SPLITS (None: gpt2).
    `special_tokens` are tokens besides `<|endoftext|>` that are never split. `keep_newlines` gives line ends a token,
    for the kind `word`. `gpt.tokenizer.Tokenizer` checks the values.
    """

    kind: str = "word"
    vocab_limit: int = 5000
    split: str | None = None
    special_tokens: tuple[str, ...] = ()
    keep_newlines: bool = False

    def __post_init__(self) -> None:
        if self.split == "llama3":  # its pattern cuts every text as GPT-4's does
            object.__setattr__(self, "split", "gpt4")

    @classmethod
    def of(cls, preset: str | None) -> "TokenizerConfig":
        """The tokenizer of a preset (None: the default one)."""
        return cls(**pick(cls, PRESETS.get(preset or "", {})))

    def __str__(self) -> str:
        choices = [f" --split {self.split}"] if self.split else []
        choices += [f" --special-token {each}" for each in self.special_tokens]
        choices += [" --keep-newlines"] if self.keep_newlines else []
        return f"{self.kind} tokenizer of {self.vocab_limit:,} tokens{''.join(choices)}"
