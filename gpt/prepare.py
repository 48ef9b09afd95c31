"""From a text file to tokenizer.json, tokens.bin and tokens.json; and whether the three still belong together.

tokens.bin is raw little-endian uint16 (uint32 once the vocabulary passes 65,536): np.memmap and nanoGPT read it as it
is. tokens.json records the origin of tokens.bin. The three are made in a directory of their own, and one rename lets
all of them take the places of older ones (`gpt.system.files.commit`). A file counts as unchanged while its size and its
modification time are; otherwise its SHA-256 decides. Tokens that no longer match are refused, never returned.

A text inside the project (the directory that holds checkpoints/) is remembered relative to the run, so that the
project can move and be used from any working directory; a text outside it is remembered by its absolute path.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt.config import DATA_PATH, PRESETS, TOKENIZERS, VOCAB_LIMIT
from gpt.errors import UserError, cannot, naming
from gpt.run import Run
from gpt.system import reading
from gpt.system.files import atomic_path, commit, remove, write_atomically
from gpt.system.filesystem import array_on_disk
from gpt.system.reading import COUNT, INTEGER, PATH, TEXT, Schema, one_of, optional
from gpt.system.shipped import default_text
from gpt.tokenizer import Tokenizer, loss
from gpt.tokenizer.text import looks_like_json_lines, read_blocks
from gpt.tokenizer.unicode_table import UNICODE_VERSION

DEFAULTS: Mapping[str, Any] = {"vocab_limit": VOCAB_LIMIT, "kind": TOKENIZERS[0]}

LEARNED = "learned.json"  # beside a learned vocabulary: from what text and with which settings

_INFO: Schema = {
    "dtype": one_of(("uint16", "uint32")),
    **dict.fromkeys(("count", "vocab_size", "characters", "dropped"), COUNT),
    "text": {"path": PATH, "size": COUNT, "mtime_ns": INTEGER, "sha256": TEXT},
    "tokenizer": {"kind": one_of(TOKENIZERS), "vocab_limit": COUNT, "sha256": TEXT, "unicode": optional(TEXT)},
    "tokens": {"size": COUNT, "mtime_ns": INTEGER, "sha256": TEXT},
    "checked": optional(TEXT),
}
_IDS_AT_ONCE = 1 << 24  # that a check for foreign ids reads

Report = Callable[[str], None]
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@contextmanager
def _silent(what: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda completed: None


@dataclass(frozen=True)
class Corpus:
    """A tokenized text. `tokens` is a read-only memory map (uint16 or uint32 [n]); `info` is what tokens.json holds.

    `info`: dtype, count (tokens), vocab_size, characters (of the text), dropped (characters the vocabulary lacks), and
    the sections text (path, size, mtime_ns, sha256), tokenizer (kind, vocab_limit, sha256, and the version of Unicode
    that says what is a letter) and tokens (size, mtime_ns, sha256). `checked` says of which tokens and tokenizer it
    is known that the vocabulary has every id.
    """

    tokenizer: Tokenizer
    tokens: np.ndarray
    info: dict[str, Any]


def prepare(
    run: Run,
    *,
    data_path: str | None = None,
    vocab_limit: int | None = None,
    kind: str | None = None,
    preset: str | None = None,
    reset: bool = False,
    report: Report = print,
    progress: Progress = _silent,
) -> Corpus:
    """The tokens of a run: those on disk if they still match, else made from the text. The caller holds the run's lock.

    `data_path`, `vocab_limit` and `kind` are the user's flags, None for those left out. Then a new tokenizer is the
    `preset`'s, if there is one, or else the run's earlier one, or else the default one; and a run that has a tokenizer
    keeps it. `reset` makes tokenizer and tokens anew. `report` takes one line for the user;
    `progress(what, total)` yields a function that takes how much is done, in bytes.
    Raises UserError if the text, the tokenizer, tokens.bin or a flag contradicts the run's records, if the preset
    contradicts a default tokenizer, if a run that has checkpoints would need a new tokenizer, and for a text that
    cannot be used. An error leaves the three files as they were.
    """
    trained = run.has_weights  # then a model exists, and it knows this tokenizer only
    has_tokenizer = run.tokenizer_path.exists()
    if trained and reset:
        raise UserError(f"--reset would part run {run.name} from its checkpoints' tokenizer: take another --run-name")
    if trained and not has_tokenizer:
        raise UserError(
            f"{run.tokenizer_path} is missing, and the run's checkpoints are of no use without it: "
            "put it back, or take another --run-name"
        )
    otherwise = "take another --run-name" if trained else "make tokenizer and tokens anew with --reset"

    info = _read_info(run)
    if data_path is not None:
        text = _resolved(Path(data_path))
    elif info is not None:
        text = _located(run, info["text"]["path"])
    elif trained:
        raise UserError(
            f"{run.tokens_info_path} is missing or damaged, so nothing says what text the run was trained on: "
            "put it back, or name the text with --data-path"
        )
    else:
        text = Path(default_text())
    if text == Path(DATA_PATH) and info is None and not text.exists():
        raise UserError(
            f"{text} does not exist: name a text with --data-path, get one with `hipgpt fetch shakespeare`, or leave "
            "--data-path out for the text that comes with hipgpt"
        )

    if reset or not has_tokenizer:
        if not reset and (info is not None or run.tokens_path.exists()):
            report(f"Note: {run.tokenizer_path} is missing, so tokenizer and tokens are made anew")
        settings = {**DEFAULTS, **(info["tokenizer"] if info else {}), **(tokenizer_of(preset) if preset else {})}
        tokenizer = Tokenizer(
            settings["vocab_limit"] if vocab_limit is None else vocab_limit, settings["kind"] if kind is None else kind
        )
        return _told(_make(run, text, tokenizer, is_new=True, report=report, progress=progress), text, report)

    if info is not None and (now := _sha256(run.tokenizer_path)) != (then := info["tokenizer"]["sha256"]):
        raise UserError(
            f"{run.tokenizer_path} is not the tokenizer that {run.tokens_path.name} was made with "
            f"(sha256 {then:.12}… then, {now:.12}… now): put that one back, or {otherwise}"
        )
    tokenizer = Tokenizer.load(run.tokenizer_path)
    for flag, wanted, used in (
        ("--vocab-size", vocab_limit, tokenizer.vocab_limit),
        ("--tokenizer", kind, tokenizer.kind),
    ):
        if wanted not in (None, used):
            raise UserError(f"{flag} is {wanted}, but {run.tokenizer_path} has {used}: leave it out, or {otherwise}")
    _check_preset(run, tokenizer, preset, {"vocab_limit": vocab_limit, "kind": kind}, otherwise, report)

    if info is None:
        lost = f"{run.tokens_info_path} is missing or damaged" if run.tokens_path.exists() else "there are no tokens"
        report(f"Note: {lost}: encoding {text} with the tokenizer that is there, {run.tokenizer_path}")
        return _told(_make(run, text, tokenizer, is_new=False, report=report, progress=progress), text, report)

    current = {**info, "text": _checked_text(run, text, info["text"], otherwise, report)}
    if not run.tokens_path.exists():
        report(f"Note: {run.tokens_path} is missing: encoding {text} again")
        return _told(_make(run, text, tokenizer, is_new=False, report=report, progress=progress), text, report)
    current["tokens"] = _checked(
        run.tokens_path, info["tokens"], f"{run.tokens_path} is not what was written",
        f"put it back, or delete it to encode {text} again",
    )  # fmt: skip
    if not trained and info["dropped"]:
        _raise_if_lossy(text, info["dropped"], info["characters"])
        report(
            f"Note: {text} has lost {info['dropped']:,} of its {info['characters']:,} characters, which the vocabulary "
            "lacks; --tokenizer byte would keep every character"
        )
    if current.get("checked") != (checked := _digest_of_both(current)):
        largest = _largest(_opened(run, tokenizer, current).tokens)
        if largest >= tokenizer.vocab_size:
            raise UserError(
                f"{run.tokens_path} has the id {largest}, but the tokenizer has {tokenizer.vocab_size} tokens: "
                f"put the right file back, or delete it to encode {text} again"
            )
        current["checked"] = checked
    if current != info:  # a new time or place for the same content, so that it need not be digested every time
        write_atomically(run.tokens_info_path, _json(current))
    return _opened(run, tokenizer, current)


def tokenizer_of(preset: str | None) -> dict[str, Any]:
    """The tokenizer of a preset, or else the default one: its `kind` and its `vocab_limit`."""
    chosen = PRESETS.get(preset or "", {})
    return {
        "vocab_limit": chosen.get("vocab_size", DEFAULTS["vocab_limit"]),
        "kind": chosen.get("tokenizer", DEFAULTS["kind"]),
    }


def _check_preset(
    run: Run, tokenizer: Tokenizer, preset: str | None, asked: Mapping[str, Any], otherwise: str, report: Report
) -> None:
    """Raises UserError if the run's tokenizer is the default and the preset's another; says so if it is a third one.

    Who asks for the run's own by a flag gets it without a word.
    """
    if preset is None:
        return
    used = {"vocab_limit": tokenizer.vocab_limit, "kind": tokenizer.kind}
    lost = {key: value for key, value in tokenizer_of(preset).items() if asked[key] is None and value != used[key]}
    if not lost:
        return
    has = f"run {run.name} has {_words(used)}"
    wants = f"--preset {preset} has {_words(tokenizer_of(preset))}"
    if used == tokenizer_of(None):
        keep = f"--tokenizer {used['kind']} --vocab-size {used['vocab_limit']}"
        raise UserError(f"{has}, but {wants}: keep the run's with {keep}, or {otherwise}")
    report(f"Note: {has} and keeps it; {wants}")


def _words(tokenizer: Mapping[str, Any]) -> str:
    return f"a {tokenizer['kind']} tokenizer of {tokenizer['vocab_limit']:,} tokens"


def is_text_of(run: Run, corpus: Corpus) -> bool:
    """Whether a run's tokens were made from the very text that `corpus` was. False if nothing says so."""
    info = _read_info(run)
    return info is not None and info["text"]["sha256"] == corpus.info["text"]["sha256"]


def adopt(source: Run, run: Run, *, with_tokens: bool) -> None:
    """Give `run` the tokenizer of `source`, and its tokens too unless another text is to be encoded.

    The caller holds the lock of `run`. Raises UserError if `source` has no tokenizer, or `run` another one.
    """
    if not source.tokenizer_path.exists():
        raise UserError(f"{source.tokenizer_path} is missing, and the checkpoint is of no use without it: put it back")
    if not run.tokenizer_path.exists():
        _copy(source.tokenizer_path, run.tokenizer_path)
    elif run.tokenizer_path.read_bytes() != source.tokenizer_path.read_bytes():
        raise UserError(f"run {run.name} has another tokenizer than {source.path}: take another --run-name")
    info = _read_info(source)
    if with_tokens and info is not None and not run.tokens_info_path.exists():
        if source.tokens_path.exists():
            _copy(source.tokens_path, run.tokens_path)
        info["text"]["path"] = _remembered(run, _located(source, info["text"]["path"]))
        write_atomically(run.tokens_info_path, _json(info))


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
        stat = source.stat()
        with suppress(OSError):  # its modification time, by which it counts as unchanged; else its digest is taken
            os.utime(temporary, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _make(run: Run, text: Path, tokenizer: Tokenizer, *, is_new: bool, report: Report, progress: Progress) -> Corpus:
    """Train the tokenizer if it is new, encode the text, and replace the run's files, all of them or none."""
    _raise_if_unreadable(text)
    before, staged = _stamp(text), run.staged_path
    learned_from = {"text": {"path": _remembered(run, text), **before}, "kind": tokenizer.kind,
                    "vocab_limit": tokenizer.vocab_limit}  # fmt: skip
    learned = _learned(run, learned_from) if is_new else None
    try:
        if learned:
            for name in set(os.listdir(staged)) - {run.tokenizer_path.name, LEARNED}:
                remove(staged / name)
            report("Note: going on with the vocabulary that was learned from this text before")
            tokenizer = learned
        else:
            remove(staged)
            staged.mkdir()
        if is_new and not learned:
            _train(tokenizer, text, before["size"], progress)
            tokenizer.save(staged / run.tokenizer_path.name)
            write_atomically(staged / LEARNED, _json(learned_from))
        if is_new:
            if tokenizer.advice:
                report(f"Note: {tokenizer.advice}")
            if tokenizer.kind == "word" and "\n" in next(read_blocks(text)).strip():
                report(
                    "Note: --tokenizer word keeps words and single spaces, but no line breaks, no indentation and no "
                    "repeated spaces; --tokenizer byte keeps every character"
                )
        tokenizer_file = (staged if is_new else run.path) / run.tokenizer_path.name
        tokens_file = staged / run.tokens_path.name
        dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        encoded = _encode(tokenizer, text, before["size"], tokens_file, dtype, progress)
        if not encoded.count:
            raise UserError(f"{text} holds nothing that the tokenizer knows, so it has no tokens: give another text")
        if _stamp(text) != before:
            raise UserError(f"{text} changed while it was being read: try again when nothing writes to it")
        info = {
            "dtype": dtype.name,
            "count": encoded.count,
            "vocab_size": tokenizer.vocab_size,
            "characters": encoded.characters,
            "dropped": encoded.dropped,
            "text": {"path": _remembered(run, text), **before, "sha256": encoded.text_sha256},
            "tokenizer": {
                "kind": tokenizer.kind, "vocab_limit": tokenizer.vocab_limit, "sha256": _sha256(tokenizer_file),
                "unicode": UNICODE_VERSION,
            },
            "tokens": {**_stamp(tokens_file), "sha256": encoded.tokens_sha256},
        }  # fmt: skip
        info["checked"] = _digest_of_both(info)
        write_atomically(staged / run.tokens_info_path.name, _json(info))
        (staged / LEARNED).unlink(missing_ok=True)
        commit(staged, run.committed_path)
    except BaseException as error:
        remove(staged / run.tokens_path.name)
        if isinstance(error, UserError) or not (staged / LEARNED).exists():
            remove(staged)
        if isinstance(error, OSError) and error.filename is not None:  # it names the folder in which the file is made
            error.filename = str(error.filename).replace(f"{staged}{os.sep}", f"{run.path}{os.sep}")
        raise
    return _opened(run, tokenizer, info)


def _learned(run: Run, learned_from: dict[str, Any]) -> Tokenizer | None:
    """The vocabulary that was learned from the same text and settings, if its encoding was then interrupted."""
    with suppress(OSError, ValueError, UserError):
        if json.loads((run.staged_path / LEARNED).read_text(encoding="utf-8")) == learned_from:
            return Tokenizer.load(run.staged_path / run.tokenizer_path.name)
    return None


def _told(corpus: Corpus, text: Path, report: Report) -> Corpus:
    """Report the characters of a text that its tokens lack, and markup that they should not have."""
    if lost := corpus.tokenizer.lost:
        said = loss(str(text), lost, corpus.info["characters"])
        report(f"Note: {said}; --tokenizer byte would keep every character")
    if looks_like_json_lines(text):
        report(
            f"Note: {text} looks like JSON Lines, and is learned as it stands, with its keys, quotes and escapes: "
            "better write the texts in it to a file of their own"
        )
    return corpus


def _raise_if_lossy(text: Path, dropped: int, characters: int) -> None:
    if 2 * dropped > characters:
        raise UserError(
            f"{dropped:,} of the {characters:,} characters of {text} are not in the vocabulary, and tokens that lack "
            "more than half of a text are of no use: give another text, or use --tokenizer byte or a larger "
            "--vocab-size for a new run"
        )


@contextmanager
def _enough_memory(text: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise UserError(
            f"out of memory while tokenizing {text}: use OMP_NUM_THREADS=1 or a part of the text; much memory goes to "
            "long stretches without white space and to many different words"
        ) from None


def _train(tokenizer: Tokenizer, text: Path, size: int, progress: Progress) -> None:
    # One half of the progress is reading, the other merging
    with _enough_memory(text), progress("Training tokenizer", 2 * size) as advance:

        def blocks() -> Iterator[str]:
            read = 0
            for block in read_blocks(text):
                yield block
                read += len(block.encode())
                advance(read)

        try:
            tokenizer.train_bpe(blocks(), lambda done, planned: advance(size + size * done // planned))
        except UserError as error:  # the tokenizer does not know the text's name
            raise UserError(re.sub("^the text ", lambda _: f"{text} ", str(error))) from None


class _Encoded(NamedTuple):
    count: int
    characters: int
    dropped: int
    text_sha256: str
    tokens_sha256: str


def _encode(tokenizer: Tokenizer, text: Path, size: int, target: Path, dtype: np.dtype, progress: Progress) -> _Encoded:
    """Write the ids to `target` block by block, counting and digesting text and ids.

    Raises UserError if more than half of the text is not in the vocabulary.
    """
    text_digest, tokens_digest = hashlib.sha256(), hashlib.sha256()
    characters = read = count = 0
    dropped_before = tokenizer.dropped

    def blocks() -> Iterator[str]:
        nonlocal characters, read
        for block in read_blocks(text):
            data = block.encode()
            text_digest.update(data)
            characters += len(block)
            read += len(data)
            yield block

    with _enough_memory(text), progress("Encoding", size) as advance, naming(target), open(target, "wb") as file:
        for ids in tokenizer.encode_blocks(blocks()):
            data = ids.astype(dtype).tobytes()
            file.write(data)
            tokens_digest.update(data)
            count += len(ids)
            advance(read)
    dropped = tokenizer.dropped - dropped_before
    if count:
        _raise_if_lossy(text, dropped, characters)
    return _Encoded(count, characters, dropped, text_digest.hexdigest(), tokens_digest.hexdigest())


def _opened(run: Run, tokenizer: Tokenizer, info: dict[str, Any]) -> Corpus:
    dtype = np.dtype(info["dtype"]).newbyteorder("<")
    return Corpus(tokenizer, array_on_disk(run.tokens_path, dtype, info["count"]), info)


def _read_info(run: Run) -> dict[str, Any] | None:
    """What tokens.json says; None if it is missing, or damaged by something other than this program."""
    try:
        info = reading.parse(reading.read(run.tokens_info_path, reading.SMALL))
        reading.check(info, _INFO)
    except (FileNotFoundError, ValueError):
        return None
    size = info["count"] * np.dtype(info["dtype"]).itemsize
    return info if 0 < size == info["tokens"]["size"] else None


def _digest_of_both(info: dict[str, Any]) -> str:
    """A digest of this pair of tokens and tokenizer."""
    return hashlib.sha256((info["tokens"]["sha256"] + info["tokenizer"]["sha256"]).encode()).hexdigest()


def _largest(tokens: np.ndarray) -> int:
    """The largest id. All tokens are read for it, so tokens.json remembers that it has been looked for."""
    return max(int(tokens[first : first + _IDS_AT_ONCE].max()) for first in range(0, len(tokens), _IDS_AT_ONCE))


def _checked_text(run: Run, text: Path, then: dict[str, Any], otherwise: str, report: Report) -> dict[str, Any]:
    """The section `text` of tokens.json as it should read now. Raises UserError if `text` is not what was encoded."""
    encoded = _located(run, then["path"])
    is_another = os.path.abspath(text) != os.path.abspath(encoded)
    if is_another or not run.tokens_path.exists():
        _raise_if_unreadable(text)
    if is_another:
        moved = {**then, "path": _remembered(run, text), "mtime_ns": None}  # only the digest can tell
        complaint = f"--data-path is {text}, but run {run.name} was made from {encoded}, and they differ"
        return _checked(text, moved, complaint, f"leave it out, or {otherwise}")
    if not text.exists():
        report(f"Note: {text} is gone: going on with the tokens made from it")
        return then
    return _checked(text, then, f"{text} has changed since it was tokenized", f"restore it, or {otherwise}")


def _checked(path: Path, then: dict[str, Any], complaint: str, advice: str) -> dict[str, Any]:
    """`then`, a section of tokens.json, with the time that the file has now. UserError if its content differs."""
    now = _stamp(path)
    if now["size"] != then["size"]:
        raise UserError(f"{complaint} ({then['size']} bytes then, {now['size']} now): {advice}")
    if now["mtime_ns"] != then["mtime_ns"] and (digest := _sha256(path)) != then["sha256"]:
        raise UserError(f"{complaint} (sha256 {then['sha256']:.12}… then, {digest:.12}… now): {advice}")
    return {**then, **now}


def _raise_if_unreadable(text: Path) -> None:
    next(read_blocks(text))


def _stamp(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with cannot(f"read {path}"):
        reading.raise_unless_regular(path)
        with open(path, "rb") as file:
            while data := file.read(1 << 16):
                digest.update(data)
    return digest.hexdigest()


def _resolved(text: Path) -> Path:
    """The file behind a name that means another one in every process, such as /dev/stdin; other names stay."""
    real = os.path.realpath(text)
    return Path(real) if str(text).startswith(("/dev/", "/proc/")) and os.path.isfile(real) else text


def _remembered(run: Run, text: Path) -> str:
    """How tokens.json names a text (see the top of this file)."""
    directory, absolute = Path(os.path.abspath(run.path)), Path(os.path.abspath(text))
    if absolute.is_relative_to(directory.parent.parent):
        absolute = Path(os.path.relpath(absolute, directory))
    return absolute.as_posix()


def _located(run: Run, remembered: str) -> Path:
    """The path that `_remembered` stands for. Links are not followed: `..` means what the user sees."""
    return Path(os.path.normpath(run.path / remembered))


def _json(info: dict[str, Any]) -> str:
    return json.dumps(info, indent=2) + "\n"  # in ASCII: a path need not be valid Unicode
