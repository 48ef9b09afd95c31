"""Vocabularies in the form of the package tiktoken: on each line a token in base64 and its rank, which is its id.

Such a file has neither the pattern that cuts a text into words nor the special tokens, which stand in the code of each
model. So only files whose digest is known are read. What is said of each of them here is from tiktoken 0.14, Meta's
llama-models 0.3 and dashscope, Alibaba's client.

tiktoken joins any two neighbors that make a token, the lowest rank first. So every way to cut a token into two tokens
is a merge of it, as in transformers' conversion. Only one of them is ever used: while a word is merged, nothing outside
of a token's place changes the order of the joins in it, if none goes beyond it. A word that is a token is not merged.

For example, of the lines `YQ== 0`, `Yg== 1`, `Yw== 2`, `YWI= 3`, `YmM= 4` and `YWJj 5`, which stand for a, b, c, ab, bc
and abc, the merges are a b, b c, a bc and ab c; a is never beside bc, because a and b are joined before.
"""

import binascii
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gpt.errors import UserError
from gpt.system import reading
from gpt.tokenizer.marks import END_OF_TEXT
from gpt.tokenizer.spelling import ByteSpelling

_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")


class _Known(NamedTuple):
    """What a file does not say: the name of its split, the special tokens that have the ids from `first` on (None: this
    id has none), and whether a text is brought into Unicode's composed form (`nfc`) before it is split.
    """

    name: str
    split: str
    first: int
    special: Sequence[str | None]
    nfc: bool = False


# fmt: off
_LLAMA3 = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
    "<|python_tag|>", "<|image|>", *(f"<|reserved_special_token_{number}|>" for number in range(2, 246)),
]
_KNOWN = {
    "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930": _Known(
        "r50k_base", "gpt2", 50256, [END_OF_TEXT]
    ),
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7": _Known(
        "cl100k_base", "gpt4", 100257,
        [END_OF_TEXT, "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", *[None] * 15, "<|endofprompt|>"],
    ),
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d": _Known(
        "o200k_base", "gpt4o", 199999, [END_OF_TEXT, *[None] * 18, "<|endofprompt|>"]
    ),
    "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55": _Known("Llama 3", "gpt4", 128000, _LLAMA3),
    "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186": _Known(
        "Qwen", "qwen2", 151643,
        [END_OF_TEXT, "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205))],
        nfc=True,
    ),
}  # by the SHA-256 of the file
# fmt: on


class Ranks(NamedTuple):
    """A vocabulary: the ids of its pieces, its merges in the order in which they are done, and what `_Known` says."""

    ids: dict[str, int]
    merges: list[tuple[str, str]]
    split: str
    special: dict[str, int]
    nfc: bool


def read(path: Path) -> Ranks | None:
    """The vocabulary in a file of tiktoken's form; None if the file has another one.

    Raises UserError for a file whose digest is not known, and as `reading.read` does.
    """
    content = reading.read(path, reading.LARGE)
    if not _LINE.match(content):
        return None
    if (known := _KNOWN.get(hashlib.sha256(content).hexdigest())) is None:
        names = ", ".join(each.name for each in _KNOWN.values())
        raise UserError(
            f"{path} is a vocabulary in tiktoken's form, but none of those that hipgpt knows ({names}), and says "
            "nothing of its split pattern and special tokens: give the tokenizer.json of the model"
        )
    tokens = {}
    for line in content.splitlines():
        token, rank = line.split(b" ")
        tokens[binascii.a2b_base64(token)] = int(rank)
    piece = {token: ByteSpelling.piece_of(token) for token in tokens}
    return Ranks(
        {piece[token]: rank for token, rank in tokens.items()},
        [
            (piece[token[:place]], piece[token[place:]])
            for token in sorted(tokens, key=tokens.__getitem__)
            for place in range(1, len(token))
            if token[:place] in tokens and token[place:] in tokens
        ],
        known.split,
        {text: known.first + number for number, text in enumerate(known.special) if text is not None},
        known.nfc,
    )
