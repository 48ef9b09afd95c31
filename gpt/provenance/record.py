"""tokens.json: what it says, how it is read and written, and how the texts and the tokenizer of a run are described."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gpt.config import SPLITS, TOKENIZERS
from gpt.corpus.sources import Sources
from gpt.corpus.text_file import UTF_8
from gpt.provenance.files import locate, remember, remember_all
from gpt.run import Run
from gpt.system import reading
from gpt.system.reading import (
    COUNT,
    INTEGER,
    LARGE,
    NAMES,
    PATH,
    TEXT,
    TRUTH,
    Kind,
    Schema,
    one_of,
    optional,
    or_null,
    sha256,
)
from gpt.tokenizer import Tokenizer
from gpt.tokenizer.unicode_table import UNICODE_VERSION

Report = Callable[[str], None]

Info = dict[str, Any]
"""The content of tokens.json. It has these keys:

- dtype, count (tokens), vocab_size, characters (of the text), dropped (characters that the vocabulary lacks);
- the section text, if one UTF-8 text was named by itself, without --text-field: path, size, mtime_ns, sha256;
- otherwise the section corpus: paths (what --data-path named), encoding, text_field (null if nobody named one),
  documents (whether the end-of-text mark stands behind each document), shuffle_documents (a seed, if they are
  shuffled), and sources, a list of such sections for all files in their order;
- the section held_out, if --val-path was given: the same keys as in corpus, and count, the number of its tokens, which
  are the last ones of tokens.bin;
- instead of these, if --tokens was given: the section token_files with paths and sources, and with --val-tokens the
  section held_out with paths, sources and count. There is no tokens.bin then, and dtype, characters, dropped and the
  section tokens are missing;
- the section tokenizer: kind, vocab_limit, split, special_tokens, keep_newlines, given (whether it was given as a file,
  not learned), sample (bytes of the text that it has learned from, if that was not all of it), sha256, unicode (the
  version of Unicode that says which characters are letters);
- the section tokens: size, mtime_ns, sha256;
- the section counted, if there are conversations in the text: count (tokens that a model learns), size, mtime_ns and
  sha256 of counted.bin;
- checked: the digest of a pair of tokens and tokenizer that are known to belong together (`pair_digest`).
"""

READING = ("encoding", "text_field", "shuffle_documents")  # keys of a corpus that say how it becomes tokens
_MANY = 1000  # files of a text

_FILE: Schema = {"path": PATH, "size": COUNT, "mtime_ns": INTEGER, "sha256": TEXT}


def _is_list_of_files(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_file(each) for each in value)


def _is_file(value: object) -> bool:
    return isinstance(value, dict) and all(
        kind.holds(value.get(key)) for key, kind in _FILE.items() if isinstance(kind, Kind)
    )


_CORPUS: Schema = {
    "paths": Kind("a list of paths", lambda value: isinstance(value, list) and all(map(PATH.holds, value))),
    "encoding": TEXT,
    "text_field": or_null(TEXT),
    "documents": TRUTH,
    "shuffle_documents": optional(INTEGER),
    "sources": Kind("a list of files", _is_list_of_files),
}
_TOKEN_FILES: Schema = {key: _CORPUS[key] for key in ("paths", "sources")}
_INFO: Schema = {
    "count": COUNT,
    "vocab_size": COUNT,
    "tokenizer": {
        "kind": one_of(TOKENIZERS), "vocab_limit": COUNT, "split": optional(or_null(one_of(SPLITS))),
        "special_tokens": optional(NAMES), "keep_newlines": optional(TRUTH), "given": optional(TRUTH),
        "sample": optional(COUNT), "sha256": TEXT, "unicode": optional(TEXT),
    },
    "checked": optional(TEXT),
}  # fmt: skip
_COUNTED: Schema = {"count": COUNT, "size": COUNT, "mtime_ns": INTEGER, "sha256": TEXT}
_ENCODED: Schema = {
    "dtype": one_of(("uint16", "uint32")),
    "characters": COUNT,
    "dropped": COUNT,
    "tokens": {"size": COUNT, "mtime_ns": INTEGER, "sha256": TEXT},
}


def read(run: Run) -> Info | None:
    """The content of a run's tokens.json; None if it is missing, or damaged by another program."""
    try:
        info: Info = reading.parse(reading.read(run.tokens_info_path, LARGE))
        if "token_files" in info:
            reading.check(info, {**_INFO, "token_files": _TOKEN_FILES})
        else:
            reading.check(info, {**_INFO, **_ENCODED, **({"corpus": _CORPUS} if "corpus" in info else {"text": _FILE})})
        if "held_out" in info:
            held_out = _TOKEN_FILES if "token_files" in info else _CORPUS
            reading.check(info["held_out"], {**held_out, "count": COUNT}, "held_out")
        if "counted" in info:
            reading.check(info["counted"], _COUNTED, "counted")
    except (FileNotFoundError, ValueError):
        return None
    if "token_files" in info:
        return info if info["count"] else None
    size = info["count"] * np.dtype(info["dtype"]).itemsize
    return info if 0 < size == info["tokens"]["size"] else None


def to_json(info: Info) -> str:
    """In ASCII, because a path need not be valid Unicode; indented, unless the files are so many that it takes long."""
    section = _of_many(info)
    is_long = section is not None and len(section["sources"]) >= _MANY
    return json.dumps(info, indent=None if is_long else 2) + "\n"


def described(run: Run, sources: Sources, digests: Sequence[str]) -> Info:
    """The section of tokens.json about a text, `text` or `corpus`. `digests` are those of its files in their order."""
    if not sources.marks and sources.encoding == UTF_8 and sources.field is None:
        return {"text": _files(run, sources, digests)[0]}
    return {"corpus": corpus_of(run, sources, digests)}


def corpus_of(run: Run, sources: Sources, digests: Sequence[str]) -> Info:
    """The section `corpus`, as which a held-out text is always described."""
    paths = [remember(run, Path(path)) for path in sources.paths]
    how: Info = {"encoding": sources.encoding, "text_field": sources.field, "documents": sources.marks}
    if sources.seed is not None:
        how["shuffle_documents"] = sources.seed
    return {"paths": paths, **how, "sources": _files(run, sources, digests)}


def _files(run: Run, sources: Sources, digests: Sequence[str]) -> list[Info]:
    places = remember_all(run, [each.path for each in sources.files])
    return [
        {"path": place, "size": each.size, "mtime_ns": each.mtime_ns, "sha256": digest}
        for place, each, digest in zip(places, sources.files, digests, strict=True)
    ]


def described_tokenizer(tokenizer: Tokenizer, file: Path) -> Info:
    """The section of tokens.json about a tokenizer, which is saved in `file`; all but `given`."""
    return {**settings_of(tokenizer), "sha256": sha256(file), "unicode": UNICODE_VERSION}


def settings_of(tokenizer: Tokenizer) -> Info:
    """The settings of a tokenizer as JSON has them."""
    return {**asdict(tokenizer.config), "special_tokens": list(tokenizer.special_tokens)}


def files_of(info: Info) -> list[dict[str, Any]]:
    """The sections of all files of a text, or of all token files but those held out, in their order."""
    section = _of_many(info)
    files: list[dict[str, Any]] = section["sources"] if section else [info["text"]]
    return files


def _of_many(info: Info) -> Info | None:
    """The section that describes several files; None if the text is one file."""
    return info.get("corpus") or info.get("token_files")


def paths_of(run: Run, info: Info) -> list[str]:
    """What --data-path or --tokens named when the tokens were made."""
    return [str(locate(run, path)) for path in remembered(info)]


def remembered(info: Info) -> list[str]:
    """The same, as `remember` has written it down."""
    section = _of_many(info)
    paths: list[str] = section["paths"] if section else [info["text"]["path"]]
    return paths


def moved(info: Info, source: Run, run: Run) -> Info:
    """The tokens.json of `source` for the tokens that `run` has taken over: the paths begin at another directory."""

    def here(section: Info) -> Info:
        files, places = files_of(section), [locate(source, file["path"]) for file in files_of(section)]
        files = [{**file, "path": path} for file, path in zip(files, remember_all(run, places), strict=True)]
        return with_files(run, section, files, paths_of(source, section))

    held_out = {"held_out": here({"corpus": info["held_out"]})["corpus"]} if "held_out" in info else {}
    return {**info, **here(info), **held_out}


def identity(info: Info) -> str:
    """A digest of a text: of the bytes of all its files, of how they are read, and of what is held out."""
    if "text" in info and "held_out" not in info:
        return str(info["text"]["sha256"])
    sections = [info] + ([{"corpus": info["held_out"]}] if "held_out" in info else [])
    hows = [[each.get("corpus", {}).get(key) for key in READING] for each in sections]
    parts = [(how, [file["sha256"] for file in files_of(each)]) for how, each in zip(hows, sections, strict=True)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def pair_digest(info: Info) -> str:
    """A digest of this pair of tokens and tokenizer."""
    tokens = info["tokens"]["sha256"] if "tokens" in info else identity(info)
    return hashlib.sha256((tokens + info["tokenizer"]["sha256"]).encode()).hexdigest()


def with_files(run: Run, info: Info, files: list[Info], paths: Sequence[str]) -> Info:
    """The section of a text with other times and places of its files, which `paths` name."""
    if "text" in info:
        return {"text": files[0]}
    name = "corpus" if "corpus" in info else "token_files"
    return {name: {**info[name], "sources": files, "paths": [remember(run, Path(path)) for path in paths]}}
