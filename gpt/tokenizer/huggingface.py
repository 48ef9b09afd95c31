"""tokenizer.json, the format of Hugging Face's `tokenizers`: written, and read as far as we give the same ids.

A file of our own has the marks at the ids 0, 1 …, then the alphabet, then the merges' pieces in their order. The ids of
a file from elsewhere stay as they are. What we cannot do is refused by name (`UnsupportedError`).

GPT-2's own two files, vocab.json and merges.txt, are read as the tokenizer.json that says the same, and so is a
vocabulary in tiktoken's form.
"""

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count, product
from pathlib import Path
from typing import Any

import numpy as np

from gpt.errors import UserError, shown
from gpt.system import reading
from gpt.system.reading import TEXT, optional, or_null
from gpt.tokenizer import tiktoken
from gpt.tokenizer.marks import END_OF_TEXT, Mark, overlap, unfit
from gpt.tokenizer.merges import Merges
from gpt.tokenizer.spelling import END_OF_WORD, ByteSpelling, CharSpelling, WordSpelling
from gpt.tokenizer.vocabulary import Vocabulary

LIMIT = 1 << 31  # tokens in a vocabulary must be fewer: ids are int32

_MOST_MISSING = 1 << 16  # ids that a vocabulary may leave out
_ORDINARY = ("single_word", "lstrip", "rstrip")  # properties of a mark that must be false
_PAIRS_OF_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # GPT-2's own, under two names
_GPT2_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast")  # in transformers
_CONFIG = {
    "tokenizer_class": optional(or_null(TEXT)),
    "added_tokens_decoder": optional(
        reading.Kind(
            "an object of added tokens",
            lambda found: (
                isinstance(found, dict)
                and all(isinstance(each, dict) and TEXT.holds(each.get("content")) for each in found.values())
            ),
        )
    ),
}  # keys of tokenizer_config.json whose values are looked into

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = {
    "gpt2": _GPT2,
    "gpt4": _GPT4,
    "qwen2": _GPT4.replace("{1,3}", ""),
    "gpt4o": _GPT4O,
}  # by name of the split
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


class UnsupportedError(ValueError):
    """A tokenizer asks for something that we do not do. The message follows "it"."""


# ---- writing --------------------------------------------------------------------------------------------------------


def document(vocabulary: Vocabulary) -> dict[str, Any]:
    """The tokenizer.json of a vocabulary. Hugging Face's `tokenizers` gives the same ids and texts with it."""
    suffix = END_OF_WORD if vocabulary.kind == "word" else None
    ids = {mark.text: mark.id for mark in vocabulary.marks}
    ids |= zip(vocabulary.symbols, vocabulary.ids.tolist(), strict=True)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": mark.id, "content": mark.text, "special": mark.special}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for mark in vocabulary.marks
        ],
        "normalizer": {"type": "NFC"} if vocabulary.nfc else None,
        "pre_tokenizer": _pre_tokenizer(vocabulary.split),
        "post_processor": None,
        "decoder": _decoder(vocabulary.split),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": suffix,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": vocabulary.whole_words,
            "vocab_limit": vocabulary.limit,  # ours; inside the model Hugging Face passes over unknown keys
            "vocab": dict(sorted(ids.items(), key=lambda item: item[1])),
            "merges": [
                [vocabulary.symbols[left], vocabulary.symbols[right]] for left, right in vocabulary.merges.pairs
            ],
        },
    }


def _pre_tokenizer(split: str) -> dict[str, Any] | None:
    if split == "white-space":
        return {"type": "WhitespaceSplit"}
    if split == "lines":
        return {"type": "Sequence", "pretokenizers": [_split(r"[^\S\n]+", "Removed"), _split(r"\n", "Isolated")]}
    if split == "characters":
        return None
    if split == "gpt2":
        return _BYTE_LEVEL
    pattern = _split(_PATTERNS[split], "Isolated")
    return {"type": "Sequence", "pretokenizers": [pattern, {**_BYTE_LEVEL, "use_regex": False}]}


def _split(pattern: str, behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


def _decoder(split: str) -> dict[str, Any]:
    words = {"type": "BPEDecoder", "suffix": END_OF_WORD}
    if split == "white-space":
        return words
    if split == "lines":  # no spaces beside a line end
        beside = {"type": "Replace", "pattern": {"Regex": " ?\n ?"}, "content": "\n"}
        return {"type": "Sequence", "decoders": [words, {"type": "Fuse"}, beside]}
    return {"type": "Fuse"} if split == "characters" else {**_BYTE_LEVEL, "add_prefix_space": True}


# ---- reading --------------------------------------------------------------------------------------------------------


def read(path: Path, what: str, advice: str) -> dict[str, Any]:
    """The document in a tokenizer.json, or in a directory that has one, or has GPT-2's two files; or of a vocabulary
    in tiktoken's form.

    `what` and `advice` are for messages, as in `read_json`. Raises UserError, and FileNotFoundError.
    """
    if not path.is_dir():
        if ranks := tiktoken.read(path):
            return _of_tiktoken(ranks)
        return reading.read_json(path, {}, what, advice, reading.LARGE)
    if (path / "tokenizer.json").exists():
        return reading.read_json(path / "tokenizer.json", {}, what, advice, reading.LARGE)
    for vocab, merges in _PAIRS_OF_FILES:
        if (path / vocab).exists() and (path / merges).exists():
            ids = reading.read_json(path / vocab, {}, what, advice, reading.LARGE)
            if more := _beyond_gpt2(path, ids):
                raise UserError(f"{more}, which {vocab} and {merges} do not say: give a tokenizer.json")
            return _of_gpt2(ids, path / merges)
    raise UserError(f"{path} is a directory without tokenizer.json and without vocab.json and merges.txt: {advice}")


def _beyond_gpt2(path: Path, ids: Mapping[str, Any]) -> str | None:
    """What else a directory asks for than GPT-2's two files, in words, or None. Raises UserError.

    transformers writes added_tokens.json and tokenizer_config.json beside the two files, and obeys them.
    """
    if (path / "added_tokens.json").exists():
        return f"{path} has added_tokens.json"
    file = path / "tokenizer_config.json"
    if not file.exists():
        return None
    found = reading.read_json(file, _CONFIG, "the configuration of a tokenizer", "give a tokenizer.json instead")
    if (name := found.get("tokenizer_class")) and name not in _GPT2_CLASSES:
        return f"{file} has the tokenizer_class {shown(name)}"
    for key in ("add_prefix_space", "add_bos_token"):
        if found.get(key):
            return f"{file} has {key}"
    added = found.get("added_tokens_decoder") or {}
    lacking = [token["content"] for token in added.values() if token["content"] not in ids]
    return f"{file} has the added token {shown(lacking[0])}" if lacking else None


def _of_gpt2(ids: dict[str, Any], merges: Path) -> dict[str, Any]:
    try:
        lines = [line.removesuffix("\r") for line in reading.read(merges, reading.LARGE).decode().split("\n")]
    except UnicodeDecodeError:
        raise UserError(f"{merges} is not UTF-8: put the right file in its place") from None
    marks = [{"id": ids[END_OF_TEXT], "content": END_OF_TEXT, "special": True}] if END_OF_TEXT in ids else []
    if lines[0].startswith("#version"):
        del lines[0]
    return {
        "added_tokens": marks,
        "pre_tokenizer": _BYTE_LEVEL,
        "decoder": _BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": ids, "merges": [line for line in lines if line]},
    }


def _of_tiktoken(found: tiktoken.Ranks) -> dict[str, Any]:
    marks = [{"id": id, "content": text, "special": True} for text, id in found.special.items()]
    model = {"type": "BPE", "ignore_merges": True, "vocab": found.ids | found.special, "merges": found.merges}
    return {
        "added_tokens": marks,
        "normalizer": {"type": "NFC"} if found.nfc else None,
        "pre_tokenizer": _pre_tokenizer(found.split),
        "decoder": _BYTE_LEVEL,
        "model": model,
    }


def vocabulary(found: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a document. Raises UnsupportedError, or what a document in no known form raises."""
    known = (
        "version",
        "truncation",
        "padding",
        "added_tokens",
        "normalizer",
        "pre_tokenizer",
        "post_processor",
        "decoder",
    )
    _check_keys(found, (*known, "model"), "it")
    for name in ("truncation", "padding"):
        if found.get(name) is not None:
            raise UnsupportedError(f"has {name} (not so a copy in which {name} is null)")
    model = found["model"]
    _check_model(model)
    if model.get("end_of_word_suffix"):
        return _of_our_own(found, "word", WordSpelling, step=2, splits=("white-space", "lines"))
    if found.get("pre_tokenizer") is None and not model["merges"]:
        return _of_our_own(found, "char", CharSpelling, step=1, splits=("characters",))
    nfc = _is_nfc(found.get("normalizer"))
    split = _split_of(found.get("pre_tokenizer"))
    decoder = found.get("decoder") or {}
    if decoder.get("type") != "ByteLevel":
        raise UnsupportedError(f"has the decoder {shown(decoder.get('type'))} instead of ByteLevel")
    ids = model["vocab"]
    _check_ids(ids)
    marks = _marks(found.get("added_tokens") or [], ids, nfc)
    symbols, merges = _merges(model["merges"])
    if lacking := [piece for piece in symbols if piece not in ids]:
        raise UnsupportedError(f"has no id for {shown(lacking[0])}, which is a byte or made by a merge")
    if rest := ids.keys() - set(symbols) - {mark.text for mark in marks}:
        raise UnsupportedError(f"has {len(rest)} tokens that no merge makes, such as {shown(min(rest))}")
    # Hugging Face numbers the added tokens that the model lacks in their order, whatever the file says.
    for theirs, mark in enumerate((mark for mark in marks if mark.text not in ids), len(ids)):
        if mark.id != theirs:
            raise UnsupportedError(
                f"has the id {mark.id} for {shown(mark.text)}, but Hugging Face's tokenizers give it {theirs}"
            )
    size = max([*ids.values(), *(mark.id for mark in marks)]) + 1
    limit = model.get("vocab_limit", size)
    if type(limit) is not int or not size <= limit < LIMIT:
        raise ValueError("a limit that is none")
    _check_post_processor(found.get("post_processor"))  # last: its advice is of use only if all else is supported
    return Vocabulary(
        "byte", split, ByteSpelling(), symbols, merges, np.fromiter(map(ids.__getitem__, symbols), np.int32), marks,
        nfc, bool(model.get("ignore_merges")), limit,
    )  # fmt: skip


def _of_our_own(
    found: Mapping[str, Any], kind: str, spelling: type[WordSpelling | CharSpelling], step: int, splits: Sequence[str]
) -> Vocabulary:
    """A vocabulary of the kind `word` or `char`. Raises ValueError unless its own document is the very same.

    Every piece number `step` of the alphabet is a character.
    """
    model = found["model"]
    ids = model["vocab"]
    _check_ids(ids)
    marks = tuple(Mark(each["content"], each["id"], each["special"]) for each in found["added_tokens"])
    texts = {mark.text for mark in marks}
    pieces = [piece for piece in sorted(ids, key=ids.__getitem__) if piece not in texts]
    first = tuple(mark for mark in marks if mark.id < ids[pieces[0]])
    model.setdefault("vocab_limit", len(ids))
    limit = model["vocab_limit"]
    alphabet, made = pieces[: len(pieces) - len(model["merges"])], pieces[len(pieces) - len(model["merges"]) :]
    number = {piece: number for number, piece in enumerate(pieces)}
    # Each merge must spell the next piece. Without this check, merges that double a piece could fill the memory.
    pairs = []
    for (left, right), piece in zip(model["merges"], made, strict=True):
        if left + right != piece or not number[left] < number[piece] > number[right]:
            raise ValueError("a merge that does not spell the next piece")
        pairs.append((number[left], number[right]))
    if type(limit) is int and len(ids) <= limit < LIMIT:
        for split in splits:
            learned = Vocabulary.learned(kind, split, limit, first, spelling(alphabet[::step]), pairs)
            learned = learned.grown([mark.text for mark in marks[len(first) :]])
            if document(learned) == found:
                return learned
    raise UnsupportedError(f"is like one of --tokenizer {kind}, but not one that hipgpt has made")


def _check_keys(found: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in found:
        if key not in known:
            raise UnsupportedError(f"has the unknown key {shown(key)}" + (f" in its {where}" if where != "it" else ""))


def _check_model(model: Mapping[str, Any]) -> None:
    if model.get("type", "BPE") != "BPE":
        raise UnsupportedError(f"has the model {shown(model['type'])} instead of BPE")
    known = ("unk_token", "fuse_unk", "end_of_word_suffix", "ignore_merges", "vocab_limit", "vocab", "merges")
    _check_keys(model, (*known, "type", "dropout", "continuing_subword_prefix", "byte_fallback"), "model")
    for key in ("dropout", "continuing_subword_prefix", "byte_fallback"):
        if model.get(key):
            raise UnsupportedError(f"has {key}")


def _check_post_processor(processor: Mapping[str, Any] | None) -> None:
    """A post-processor may give a text no ids of its own. ByteLevel's changes offsets only, and so does a template
    that consists of the text alone.
    """
    if processor is None or processor["type"] == "ByteLevel":
        return
    if processor["type"] == "Sequence":
        for each in processor["processors"]:
            _check_post_processor(each)
        return
    if processor["type"] == "TemplateProcessing" and [list(each) for each in processor["single"]] == [["Sequence"]]:
        return
    raise UnsupportedError(
        f"has the post_processor {shown(processor['type'])}, which adds tokens to every text (not so a copy in which "
        "post_processor is null)"
    )


def _is_nfc(normalizer: Mapping[str, Any] | None) -> bool:
    if normalizer is None:
        return False
    if normalizer["type"] == "Sequence":
        found = [_is_nfc(each) for each in normalizer["normalizers"]]
        return any(found)
    if normalizer["type"] != "NFC":
        raise UnsupportedError(f"has the normalizer {shown(normalizer['type'])}")
    return True


def _split_of(pre_tokenizer: Mapping[str, Any] | None) -> str:
    """The name of the split that a pre-tokenizer asks for."""
    parts = [] if pre_tokenizer is None else [pre_tokenizer]
    if parts and parts[0]["type"] == "Sequence":
        parts = parts[0]["pretokenizers"]
    types = [part["type"] for part in parts]
    if types[-1:] == ["ByteLevel"] and parts[-1].get("add_prefix_space", True):
        raise UnsupportedError("adds a space before a text (add_prefix_space)")
    if types == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt2"
    if types != ["Split", "ByteLevel"] or parts[1].get("use_regex", True):
        raise UnsupportedError(f"has the pre_tokenizer {' and '.join(map(str, types)) or None}")
    if (parts[0]["behavior"], parts[0]["invert"]) not in (("Isolated", False), ("Removed", True)):
        raise UnsupportedError(f"splits with the behavior {shown(parts[0]['behavior'])}")
    pattern = parts[0]["pattern"].get("Regex")
    for name, known in _PATTERNS.items():
        if pattern == known:
            return name
    raise UnsupportedError(f"has the unknown split pattern {shown(pattern)}")


def _check_ids(ids: Mapping[str, Any]) -> None:
    if {type(id) for id in ids.values()} != {int} or min(ids.values()) < 0:
        raise ValueError("ids that are none")
    if max(ids.values()) >= len(ids) + _MOST_MISSING:
        raise UnsupportedError(f"has {len(ids)} tokens, but the id {max(ids.values())}")
    if len(set(ids.values())) < len(ids):
        raise UnsupportedError(f"has the id {Counter(ids.values()).most_common(1)[0][0]} twice")
    "".join(ids).encode()  # ValueError for a lone surrogate


def _marks(added: Sequence[Mapping[str, Any]], ids: Mapping[str, int], nfc: bool) -> tuple[Mark, ...]:
    """The marks that a document has as added tokens."""
    piece_of = {id: piece for piece, id in ids.items()}
    marks = []
    for each in added:
        text, id = each["content"], each["id"]
        if reason := unfit(text):
            raise UnsupportedError(f"has the added token {shown(text)}, which {reason}")
        for key in _ORDINARY:
            if each.get(key):
                raise UnsupportedError(f"has the added token {shown(text)} with {key}")
        if type(id) is not int or not 0 <= id < len(ids) + len(added) + _MOST_MISSING:
            raise ValueError("an id that is none")
        if piece_of.setdefault(id, text) != text or ids.get(text, id) != id:
            raise UnsupportedError(f"has the id {id} for {shown(text)} and for another token")
        marks.append(Mark(text, id, bool(each.get("special", False))))
    # Hugging Face looks for the marks that are `normalized` in what lies between the others, after normalizing.
    last = [each["content"] for each in added if each.get("normalized", not each.get("special"))]
    if nfc and last:
        raise UnsupportedError("has added tokens that are looked for only after normalizing (normalized)")
    for text, other in product(last, {mark.text for mark in marks} - set(last)):
        if overlap(text, other):
            raise UnsupportedError(f"looks for the added token {shown(other)} before {shown(text)} (normalized)")
    if len({mark.text for mark in marks}) < len(marks):
        raise ValueError("a mark twice")
    return tuple(marks)


def _merges(found: Sequence[Any]) -> tuple[list[str], Merges]:
    """The symbols, bytes first, and the merges. A merge is written "a b" or ["a", "b"]."""
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in found]
    lefts, rights = [left for left, _ in pairs], [right for _, right in pairs]  # ValueError if one is not a pair
    if not (all(lefts) and all(rights)):
        raise ValueError("a merge of nothing")
    pieces = list(map(operator.add, lefts, rights))
    "".join(pieces)  # TypeError unless all are texts: numbers could be made of each other without end
    number = dict(zip(ByteSpelling.alphabet, count(), strict=False))
    made = np.array([number.setdefault(piece, len(number)) for piece in pieces], np.int32)
    left, right = _numbers_of(lefts, number), _numbers_of(rights, number)
    _, first = np.unique(left.astype(np.int64) * len(number) + right, return_index=True)
    if len(first) < len(pairs):
        again = np.setdiff1d(np.arange(len(pairs)), first)[0]
        raise UnsupportedError(f"has the merge {shown(f'{lefts[again]} {rights[again]}')} twice")
    return list(number), Merges(len(ByteSpelling.alphabet), np.stack([left, right], axis=1), made)


def _numbers_of(pieces: Sequence[str], number: Mapping[str, int]) -> np.ndarray:
    """The numbers of pieces, int32 [n]. Raises UnsupportedError for a piece that has none."""
    try:
        return np.fromiter(map(number.__getitem__, pieces), np.int32, len(pieces))
    except KeyError as lacking:
        piece = lacking.args[0]
    raise UnsupportedError(f"has a merge of {shown(piece)}, which is neither a byte nor made by a merge")
