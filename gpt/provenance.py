"""tokens.json: the origin of a run's tokens, remembered when they are made and checked before they are used.

A file counts as unchanged while its size and its modification time are the same; otherwise its SHA-256 decides.
A text inside the project (the directory that holds checkpoints/) is remembered relative to the run, so that the
project can move and be used from any working directory. A text outside it is remembered by its absolute path.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from gpt.config import SPLITS, TOKENIZERS
from gpt.errors import UserError, cannot
from gpt.run import Run
from gpt.system import reading
from gpt.system.reading import COUNT, INTEGER, NAMES, PATH, TEXT, TRUTH, Schema, one_of, optional, or_null
from gpt.tokenizer.text import read_blocks

Info = dict[str, Any]
"""The content of tokens.json. It has these keys:

- dtype, count (tokens), vocab_size, characters (of the text), dropped (characters that the vocabulary lacks);
- the section text: path, size, mtime_ns, sha256;
- the section tokenizer: kind, vocab_limit, split, special_tokens, keep_newlines, given (whether it was given as a file,
  not learned), sha256, unicode (the version of Unicode that says which characters are letters);
- the section tokens: size, mtime_ns, sha256;
- checked: the digest of a pair of tokens and tokenizer that are known to belong together (`pair_digest`).
"""

_INFO: Schema = {
    "dtype": one_of(("uint16", "uint32")),
    **dict.fromkeys(("count", "vocab_size", "characters", "dropped"), COUNT),
    "text": {"path": PATH, "size": COUNT, "mtime_ns": INTEGER, "sha256": TEXT},
    "tokenizer": {
        "kind": one_of(TOKENIZERS), "vocab_limit": COUNT, "split": optional(or_null(one_of(SPLITS))),
        "special_tokens": optional(NAMES), "keep_newlines": optional(TRUTH), "given": optional(TRUTH),
        "sha256": TEXT, "unicode": optional(TEXT),
    },
    "tokens": {"size": COUNT, "mtime_ns": INTEGER, "sha256": TEXT},
    "checked": optional(TEXT),
}  # fmt: skip


def read(run: Run) -> Info | None:
    """The content of a run's tokens.json; None if it is missing, or damaged by another program."""
    try:
        info: Info = reading.parse(reading.read(run.tokens_info_path, reading.SMALL))
        reading.check(info, _INFO)
    except (FileNotFoundError, ValueError):
        return None
    size = info["count"] * np.dtype(info["dtype"]).itemsize
    return info if 0 < size == info["tokens"]["size"] else None


def to_json(info: Info) -> str:
    return json.dumps(info, indent=2) + "\n"  # in ASCII: a path need not be valid Unicode


def pair_digest(info: Info) -> str:
    """A digest of this pair of tokens and tokenizer."""
    return hashlib.sha256((info["tokens"]["sha256"] + info["tokenizer"]["sha256"]).encode()).hexdigest()


def check_text(run: Run, text: Path, then: Info, otherwise: str) -> Info:
    """Check that `text` is the encoded text, and return the section `text` of tokens.json with its path and time.

    `then` is the section as it stands. Raises UserError if the text differs, with the advice `otherwise`.
    """
    encoded = locate(run, then["path"])
    is_another = os.path.abspath(text) != os.path.abspath(encoded)
    if is_another or not run.tokens_path.exists():
        raise_if_unreadable(text)
    if is_another:
        moved = {**then, "path": remember(run, text), "mtime_ns": None}  # no time to compare: the digest decides
        complaint = f"--data-path is {text}, but run {run.name} was made from {encoded}, and they differ"
        return check_file(text, moved, complaint, f"leave it out, or {otherwise}")
    if not text.exists():
        return then
    return check_file(text, then, f"{text} has changed since it was tokenized", f"restore it, or {otherwise}")


def check_file(path: Path, then: Info, complaint: str, advice: str) -> Info:
    """Check a file against its section of tokens.json, and return the section with the file's time as it is now.

    Raises UserError if the content differs.
    """
    now = stamp(path)
    if now["size"] != then["size"]:
        raise UserError(f"{complaint} ({then['size']} bytes then, {now['size']} now): {advice}")
    if now["mtime_ns"] != then["mtime_ns"] and (digest := sha256(path)) != then["sha256"]:
        raise UserError(f"{complaint} (sha256 {then['sha256']:.12}… then, {digest:.12}… now): {advice}")
    return {**then, **now}


def raise_if_unreadable(text: Path) -> None:
    next(read_blocks(text))


def stamp(path: Path) -> dict[str, int]:
    """The size and the modification time of a file."""
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with cannot(f"read {path}"):
        reading.raise_unless_regular(path)
        with open(path, "rb") as file:
            while data := file.read(1 << 16):
                digest.update(data)
    return digest.hexdigest()


def resolve(text: Path) -> Path:
    """The file behind a name that means another file in every process, such as /dev/stdin; other names stay."""
    real = os.path.realpath(text)
    return Path(real) if str(text).startswith(("/dev/", "/proc/")) and os.path.isfile(real) else text


def remember(run: Run, text: Path) -> str:
    """The path of a text as tokens.json has it (see the top of this file)."""
    directory, absolute = Path(os.path.abspath(run.path)), Path(os.path.abspath(text))
    if absolute.is_relative_to(directory.parent.parent):
        absolute = Path(os.path.relpath(absolute, directory))
    return absolute.as_posix()


def locate(run: Run, remembered: str) -> Path:
    """The path that `remember` turned into `remembered`. Links are not followed: `..` means the folder above."""
    return Path(os.path.normpath(run.path / remembered))
