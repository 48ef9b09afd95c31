"""tokens.json: the origin of a run's tokens, remembered when they are made and checked before they are used.

A file counts as unchanged while its size and its modification time are the same; otherwise its SHA-256 decides.
A text inside the project (the directory that holds checkpoints/) is remembered relative to the run, so that the
project can move and be used from any working directory. A text outside it is remembered by its absolute path.
"""

import hashlib
import json
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from gpt.config import SPLITS, TOKENIZERS, DataConfig, flag
from gpt.corpus.finding import absolute, named
from gpt.corpus.kinds import NotTextError
from gpt.corpus.sources import UTF_8, Source, Sources, Texts, few, find
from gpt.corpus.token_files import recognized
from gpt.errors import UserError, cannot
from gpt.run import Run
from gpt.system import reading
from gpt.system.filesystem import array_on_disk
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
)
from gpt.tokenizer import Tokenizer
from gpt.tokenizer.unicode_table import UNICODE_VERSION
from gpt.tokens import Tokens

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

_READING = ("encoding", "text_field", "shuffle_documents")  # keys of a corpus that say how it becomes tokens
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
        return _section(run, section, files, paths_of(source, section))

    held_out = {"held_out": here({"corpus": info["held_out"]})["corpus"]} if "held_out" in info else {}
    return {**info, **here(info), **held_out}


def identity(info: Info) -> str:
    """A digest of a text: of the bytes of all its files, of how they are read, and of what is held out."""
    if "text" in info and "held_out" not in info:
        return str(info["text"]["sha256"])
    sections = [info] + ([{"corpus": info["held_out"]}] if "held_out" in info else [])
    hows = [[each.get("corpus", {}).get(key) for key in _READING] for each in sections]
    parts = [(how, [file["sha256"] for file in files_of(each)]) for how, each in zip(hows, sections, strict=True)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def pair_digest(info: Info) -> str:
    """A digest of this pair of tokens and tokenizer."""
    tokens = info["tokens"]["sha256"] if "tokens" in info else identity(info)
    return hashlib.sha256((tokens + info["tokenizer"]["sha256"]).encode()).hexdigest()


def tokens_of(run: Run, info: Info) -> Tokens:
    """The run's tokens: tokens.bin, or the files that --tokens named, and then those of --val-tokens.

    Raises UserError if one is missing or has become another kind of file, and OSError.
    """
    if "token_files" not in info:
        return Tokens([array_on_disk(run.tokens_path, np.dtype(info["dtype"]).newbyteorder("<"), info["count"])])
    return Tokens([recognized(path, info["vocab_size"]).mapped() for path, _ in _token_files(run, info)])


def counted_of(run: Run, info: Info) -> np.ndarray | None:
    """Which of the run's tokens a model learns, uint8 [n]; None if that is all of them. Raises OSError."""
    return array_on_disk(run.counted_path, np.dtype(np.uint8), info["count"]) if "counted" in info else None


def check_tokens(run: Run, info: Info, complaint: str, advice: str) -> None:
    """Check that the run's tokens are still the recorded ones. Raises UserError, with `complaint` and `advice`.

    `complaint` goes on from the name of the file.
    """
    files = _token_files(run, info) if "token_files" in info else [(run.tokens_path, info["tokens"])]
    files += [(run.counted_path, info["counted"])] if "counted" in info else []
    for path, then in files:
        if not path.exists():
            raise UserError(f"{path} does not exist: {advice}")
        check_file(path, then, f"{path} {complaint}", advice)


def _token_files(run: Run, info: Info) -> list[tuple[Path, Info]]:
    """All token files, those that are held out last, each with its section."""
    files = [*files_of(info), *(info["held_out"]["sources"] if "held_out" in info else [])]
    return [(locate(run, file["path"]), file) for file in files]


def sources_of(run: Run, info: Info) -> Sources:
    """The files of a text, as they were read when the tokens were made. Raises UserError if one cannot be read now."""
    files, paths = [locate(run, file["path"]) for file in files_of(info)], tuple(paths_of(run, info))
    if "text" in info:
        return Sources(paths, [replace(Source.of(files[0]), format="plain", conversations=False)])
    encoding, field = info["corpus"]["encoding"], info["corpus"]["text_field"]
    seed = info["corpus"].get("shuffle_documents")
    return Sources(paths, [Source.of(file, encoding, field) for file in files], encoding, field, seed)


def texts_of(run: Run, info: Info) -> Texts:
    """Both texts, as they were read when the tokens were made. Raises UserError if a file cannot be read now."""
    held_out = sources_of(run, {"corpus": info["held_out"]}) if "held_out" in info else None
    return Texts(sources_of(run, info), held_out)


def check_text(
    run: Run, asked: DataConfig, info: Info, otherwise: str, report: Report, option: str = "--data-path"
) -> Info:
    """Check that the text is still the one that was encoded; return its section of tokens.json with paths and times.

    `asked` is what the user's flags say now; its data_path comes from `option`. Files that are gone are reported, and
    so are new ones in a folder, unless the user has named the folder again. Raises UserError if the text differs, with
    the advice `otherwise`.
    """
    _check_reading(run, asked, info, otherwise)
    before = paths_of(run, info)
    groups = {name: named(name, option) for name in asked.data_path or before}
    names = [str(group.paths[0]) if group.by_itself else name for name, group in groups.items()]
    if list(map(os.path.abspath, names)) != list(map(os.path.abspath, before)):
        return _check_moved(run, names, info, otherwise, option)
    files = _check_in_place(run, info, otherwise, report)
    if added := _added(run, [path for group in groups.values() for path in group.paths], info):
        has = f"{', '.join(names)} has {len(added):,} {'file' if len(added) == 1 else 'files'} that run {run.name} was "
        has += f"not made from: {few(added)}"
        if asked.data_path:
            raise UserError(f"{has}: leave {option} out to go on with the other ones, or {otherwise}")
        report(f"Note: {has}; to take them in, {otherwise}")
    return _section(run, info, files, before)


def check_held_out(run: Run, asked: DataConfig, info: Info, otherwise: str, report: Report) -> Info:
    """As `check_text`, for the section `held_out`; nothing if no text of its own is held out."""
    if "held_out" in info:
        of_option = replace(asked, data_path=asked.val_path, shuffle_documents=None)  # it is never shuffled
        section = check_text(run, of_option, {"corpus": info["held_out"]}, otherwise, report, "--val-path")
        return {"held_out": section["corpus"]}
    if asked.val_path:
        raise UserError(
            f"--val-path is {', '.join(asked.val_path)}, but the tokens of run {run.name} were made without it: leave "
            f"it out, or {otherwise}"
        )
    return {}


def _check_reading(run: Run, asked: DataConfig, info: Info, otherwise: str) -> None:
    """Raises UserError if a flag says that the files are to be read in another way than they were."""
    used = {"encoding": UTF_8, "text_field": None, "shuffle_documents": None, **info.get("corpus", {})}
    for key in _READING:
        if (wanted := getattr(asked, key)) is not None and wanted != used[key]:
            how = f"with {used[key]}" if used[key] is not None else "without it"
            raise UserError(
                f"{flag(key)} is {wanted}, but the tokens of run {run.name} were made {how}: leave it out, or "
                f"{otherwise}"
            )


def _check_moved(run: Run, names: Sequence[str], info: Info, otherwise: str, option: str) -> Info:
    """The section of the text if the same files lie elsewhere. Raises UserError if they are not the same."""
    corpus = info.get("corpus", {"encoding": UTF_8, "text_field": None, "documents": False})
    sources = find(names, corpus["encoding"], corpus["text_field"], option).sources
    before, then, now = ", ".join(paths_of(run, info)), files_of(info), sources.files
    complaint = f"{option} is {sources.name}, but run {run.name} was made from {before}, and they differ"
    advice = f"leave it out, or {otherwise}"
    if len(now) != len(then) or sources.marks != corpus["documents"]:
        raise UserError(f"{complaint} ({_count(len(then))} then, {_count(len(now))} now): {advice}")
    files = [  # there is no time to compare: the digest decides
        {**check_file(source.path, {**file, "mtime_ns": None}, complaint, advice), "path": remember(run, source.path)}
        for source, file in zip(now, then, strict=True)
    ]
    return _section(run, info, files, sources.paths)


def _check_in_place(run: Run, info: Info, otherwise: str, report: Report) -> list[Info]:
    """Check the files where they were. Returns their sections, with the time as it is now of those that are there."""
    files, gone = [], []
    for file in files_of(info):
        path = locate(run, file["path"])
        if path.exists():
            complaint = f"{path} has changed since it was tokenized"
            files.append(check_file(path, file, complaint, f"restore it, or {otherwise}"))
        else:
            files.append(file)
            gone.append(path)
    if gone and not run.tokens_path.exists():
        raise UserError(f"{gone[0]} does not exist: restore it, or {otherwise}")
    if gone and len(files) == 1:
        report(f"Note: {gone[0]} is gone: going on with the tokens made from it")
    elif gone:
        some = f"{len(gone):,} of the {len(files):,} files are gone ({few(gone)})"
        report(f"Note: {some}: going on with the tokens made from them")
    return files


def _added(run: Run, now: Sequence[Path], info: Info) -> list[Path]:
    """The texts among the files `now` from which no tokens were made. Those that cannot be read count as texts."""
    known = set(absolute(locate(run, file["path"]) for file in files_of(info)))
    encoding = info.get("corpus", {}).get("encoding", UTF_8)
    added = []
    for path, real in zip(now, absolute(now), strict=True):
        if real not in known:
            try:
                Source.of(path, encoding, in_folder=True)
            except NotTextError:
                continue
            except UserError:  # the run does not need it
                pass
            added.append(path)
    return added


def _section(run: Run, info: Info, files: list[Info], paths: Sequence[str]) -> Info:
    """The section of a text with other times and places of its files, which `paths` name."""
    if "text" in info:
        return {"text": files[0]}
    name = "corpus" if "corpus" in info else "token_files"
    return {name: {**info[name], "sources": files, "paths": [remember(run, Path(path)) for path in paths]}}


def _count(files: int) -> str:
    return "one file" if files == 1 else f"{files:,} files"


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


def remember(run: Run, text: Path) -> str:
    """The path of a text as tokens.json has it (see the top of this file)."""
    directory, absolute = os.path.abspath(run.path), os.path.abspath(text)
    project = os.path.dirname(os.path.dirname(directory))
    if os.path.join(absolute, "").startswith(os.path.join(project, "")):
        absolute = os.path.relpath(absolute, directory)
    return absolute.replace(os.sep, "/")


def remember_all(run: Run, texts: Iterable[Path]) -> Iterator[str]:
    """`remember` for each of many files. Few folders hold them, so it is asked for these."""
    remembered = cache(partial(remember, run))
    for folder, name in map(os.path.split, texts):
        within = remembered(folder)
        yield name if within == os.curdir else posixpath.join(within, name)


def locate(run: Run, remembered: str) -> Path:
    """The path that `remember` turned into `remembered`. Links are not followed: `..` means the folder above."""
    return Path(os.path.normpath(os.path.join(run.path, remembered)))
