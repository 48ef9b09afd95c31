"""From a text file to tokenizer.json, tokens.bin and tokens.json, and checks that the three still belong together.

tokens.bin is raw little-endian uint16 (uint32 once the vocabulary passes 65,536), as np.memmap and nanoGPT read it.
tokens.json records the origin of tokens.bin (gpt/provenance.py). The three are made in a directory of their own, and
one rename lets all of them take the places of older ones (`gpt.system.files.commit`). Tokens that no longer match are
refused, never returned.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gpt import chat_template, provenance, readymade
from gpt.config import DATA_PATH, TOKENIZERS, DataConfig, TokenizerConfig, flag, pick
from gpt.corpus import Sources
from gpt.corpus.conversations import write_counted
from gpt.corpus.kinds import looks_like_json_lines
from gpt.corpus.shuffling import shuffle_documents
from gpt.corpus.sources import UTF_8, Texts, few, find, left_out_words
from gpt.corpus.standard_input import copied
from gpt.distributed.ranks import ALONE, Ranks
from gpt.encode import (
    Joined,
    Progress,
    dtype_of,
    encode,
    encode_part,
    end_mark,
    enough_memory,
    journal,
    move_to_end,
    named_as_placed,
)
from gpt.errors import UserError, shown
from gpt.provenance import Info, Report
from gpt.run import Run
from gpt.system.files import atomic_path, commit, remove, write_atomically
from gpt.system.reading import raise_unless_regular
from gpt.system.shipped import default_text
from gpt.tokenizer import Tokenizer, lost_note
from gpt.tokens import Tokens

_LEARNED, _GIVEN, _KEPT = "learned", "given", "kept"  # origins of a tokenizer: the text, the user's file, the run

LEARNED = "learned.json"  # lies beside a learned vocabulary, and records its text and settings

_HELD_OUT = "held_out.bin"  # the tokens of the held-out text, until they are appended to the others

_SHUFFLED = "shuffled.bin"  # the tokens with their documents in another order, until they replace the others

MARKERS = tuple(chat_template.MARKERS.values())  # the special tokens that conversations need

_GPT2 = Path(DATA_PATH).with_name("gpt2")  # where `hipgpt fetch` puts GPT-2's vocabulary

_IDS_AT_ONCE = 1 << 24  # ids that the search for foreign ones reads at a time


@contextmanager
def _silent(name: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda completed: None


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


def prepare(
    run: Run,
    *,
    data: DataConfig | None = None,
    preset: str | None = None,
    reset: bool = False,
    report: Report = print,
    progress: Progress = _silent,
    ranks: Ranks = ALONE,
    may_grow: bool = True,
    **asked: Any,
) -> Corpus:
    """The tokens of a run: those on disk if they still match, else made from the text. The caller holds the run's lock.

    All `ranks` call this, and each encodes a range of the text; the rest is up to the first one, which alone needs the
    lock and the other arguments. The files do not depend on the number of ranks.

    `data` and those fields of TokenizerConfig that were `asked` for are the user's flags. A run that has a tokenizer
    keeps it. A `kind` that is a path gives the run the tokenizer that lies there. A new tokenizer takes each setting
    from the flag, else from the `preset`, else from the run's earlier tokenizer, else from the defaults. `reset` makes
    tokenizer and tokens anew. `report` takes one line for the user; `progress(name, total)` yields a function that
    takes the number of bytes done so far. If the text has conversations and the tokenizer lacks their markers, it gets
    them, unless a model knows it already, or it `may_grow` no more.
    Raises UserError if the text, the tokenizer, tokens.bin or a flag contradicts the run's records, if the preset
    contradicts a default tokenizer, if a run that has checkpoints would need a new tokenizer, and for a text that
    cannot be used. An error leaves the three files as they were. If it comes on one rank, ending the others is up to
    the caller.
    """
    if not ranks.is_first:
        return _helped(run, ranks)
    asked = {key: value for key, value in asked.items() if value is not None}
    with copied(run, data or DataConfig()) as named:
        corpus = _prepared(run, named, asked, preset, reset, report, progress, ranks, may_grow)
    ranks.share({"made": corpus.info})
    return corpus


def _prepared(
    run: Run, data: DataConfig, asked: Mapping[str, Any], preset: str | None, reset: bool, report: Report,
    progress: Progress, ranks: Ranks, may_grow: bool,
) -> Corpus:  # fmt: skip
    """The tokens of a run, as `prepare` describes, on the first rank."""
    trained = run.has_weights  # then a model exists, and it knows this tokenizer only
    has_tokenizer = run.tokenizer_path.exists()
    if trained and reset:
        raise UserError(
            f"--reset would replace the tokenizer that the checkpoints of run {run.name} need: take another --run-name"
        )
    if trained and not has_tokenizer:
        raise UserError(
            f"{run.tokenizer_path} is missing, and the run's checkpoints are of no use without it: "
            "put it back, or take another --run-name"
        )
    otherwise = "take another --run-name" if trained else "make tokenizer and tokens anew with --reset"
    given = _given_tokenizer(asked)
    info = provenance.read(run)
    if readymade.are_wanted(run, data, info, reset, otherwise):
        return _ready_made(run, data, info, asked, preset, given, reset, otherwise, report, progress)
    if info is not None and "token_files" in info:  # tokens that --reset gives up; their tokenizer may stay
        info = {key: value for key, value in info.items() if key not in ("token_files", "held_out")}
    names = _names(run, data, info)
    _check_sample(data, info, has_tokenizer and not reset, given, otherwise)

    def made(texts: Texts, tokenizer: Tokenizer, origin: str) -> Corpus:
        if texts.with_conversations and not chat_template.is_used_by(tokenizer):
            if origin == _KEPT and (trained or not may_grow):
                raise UserError(
                    f"{few(texts.with_conversations)} holds conversations, but the tokenizer of the model lacks "
                    f"{', '.join(MARKERS)}: begin a new run with --from, whose model gets them"
                )
            tokenizer, origin = tokenizer.with_special_tokens(MARKERS), _GIVEN
        corpus = _make(run, texts, tokenizer, origin, info, report, progress, ranks)
        _report_lost(corpus, texts.train, report)
        if "counted" in corpus.info:
            report(
                f"Note: {few(texts.with_conversations)} holds conversations: the model learns what the assistant says, "
                f"{corpus.info['counted']['count']:,} of {len(corpus.tokens):,} tokens"
            )
        return corpus

    if reset or not has_tokenizer:
        if info is not None and info["tokenizer"].get("given") and preset is None and not asked:
            if not has_tokenizer:
                raise UserError(f"{run.tokenizer_path} is missing, and was given: put it back, or give --tokenizer")
            given = Tokenizer.load(run.tokenizer_path)  # nothing that the run knows could learn it again
        if given is not None:
            return made(_found(run, names, data, info, report), given, _GIVEN)
        if not reset and (info is not None or run.tokens_path.exists()):
            report(f"Note: {run.tokenizer_path} is missing, so tokenizer and tokens are made anew")
        texts = _found(run, names, data, info, report)
        markers = MARKERS if texts.with_conversations else ()
        return made(texts, _blank_tokenizer(info, preset, asked, markers), _LEARNED)
    tokenizer = _kept_tokenizer(run, info, preset, asked, given, otherwise, report)
    if info is None:
        lost = f"{run.tokens_info_path} is missing or damaged" if run.tokens_path.exists() else "there are no tokens"
        texts = _found(run, names, data, None, report)
        report(f"Note: {lost}: encoding {texts.train.name} with the run's tokenizer, {run.tokenizer_path}")
        return made(texts, tokenizer, _KEPT)
    current = {
        **info,
        **provenance.check_text(run, data, info, otherwise, report),
        **provenance.check_held_out(run, data, info, otherwise, report),
    }
    if not run.tokens_path.exists():
        texts = provenance.texts_of(run, current)
        report(f"Note: {run.tokens_path} is missing: encoding {texts.train.name} again")
        return made(texts, tokenizer, _KEPT)
    return _kept_tokens(run, ", ".join(names), tokenizer, info, current, report)


def _ready_made(
    run: Run, data: DataConfig, info: Info | None, asked: Mapping[str, Any], preset: str | None,
    given: Tokenizer | None, reset: bool, otherwise: str, report: Report, progress: Progress,
) -> Corpus:  # fmt: skip
    """The tokens that --tokens names, or has named."""
    is_there = run.tokenizer_path.exists()
    if is_there and not reset:
        tokenizer = _kept_tokenizer(run, info, preset, asked, given, otherwise, report)
        if info is not None:
            return _opened(run, tokenizer, readymade.recheck(run, data, info, otherwise, report))
    elif given is not None:
        tokenizer = given
    elif is_there and info is not None and not asked:
        tokenizer = Tokenizer.load(run.tokenizer_path)
    else:
        raise UserError(readymade.NO_TOKENIZER)
    is_new = reset or not is_there
    return _opened(run, tokenizer, readymade.record(run, data, info, tokenizer, is_new, progress))


def _helped(run: Run, ranks: Ranks) -> Corpus:
    """Encode a range of the text, if the first rank asks for it, and return the same corpus as there."""
    tokenizer = None
    while "made" not in (asked := ranks.share()):
        tokenizer = encode_part(run, asked, ranks)
    info, advice = asked["made"], "put --runs-dir on a file system that all ranks share, or copy that rank's run"
    if provenance.sha256(run.tokenizer_path) != info["tokenizer"]["sha256"]:
        raise UserError(f"{run.tokenizer_path} is another tokenizer than the first rank's: {advice}")
    provenance.check_tokens(run, info, "is not the first rank's", advice)
    return _opened(run, tokenizer or Tokenizer.load(run.tokenizer_path), info)


def _check_sample(data: DataConfig, info: Info | None, is_kept: bool, given: Tokenizer | None, otherwise: str) -> None:
    """Raises UserError if --sample is given, but the tokenizer is not to learn, or has learned from another sample."""
    if data.sample is None:
        return
    if is_kept and data.sample != (used := info["tokenizer"].get("sample") if info else None):
        learned = "all of its text" if used is None else f"a sample of {used}"
        raise UserError(
            f"--sample is {data.sample}, but the run's tokenizer was not learned from it, but from {learned}: leave it "
            f"out, or {otherwise}"
        )
    if given is not None and not is_kept:
        raise UserError(f"--sample {data.sample} goes with a tokenizer that is learned, not with a path: leave it out")


def _names(run: Run, data: DataConfig, info: Info | None) -> Sequence[str]:
    """What names the text: --data-path, else tokens.json, else the default text."""
    if data.data_path:
        names: Sequence[str] = data.data_path
    elif info is not None:
        names = provenance.paths_of(run, info)
    elif run.has_weights:
        raise UserError(
            f"{run.tokens_info_path} is missing or damaged, so nothing says what text the run was trained on: "
            "put it back, or name the text with --data-path"
        )
    else:
        names = [default_text()]
    if info is None and any(Path(name) == Path(DATA_PATH) for name in names) and not Path(DATA_PATH).exists():
        raise UserError(
            f"{DATA_PATH} does not exist: name a text with --data-path, get one with `hipgpt fetch shakespeare`, or "
            "leave --data-path out for the text that comes with hipgpt"
        )
    return names


def _found(run: Run, names: Sequence[str], data: DataConfig, info: Info | None, report: Report) -> Texts:
    """The files of the texts that are to be encoded; how they are read is up to the flags, else to tokens.json."""
    before = info.get("corpus", {}) if info else {}
    held_out = {"corpus": info["held_out"]} if info and "held_out" in info else None
    encoding, field = data.encoding or before.get("encoding", UTF_8), data.text_field or before.get("text_field")
    train = find(names, encoding, field)
    seed = data.shuffle_documents if data.shuffle_documents is not None else before.get("shuffle_documents")
    if seed is not None and not train.sources.marks:
        raise UserError(
            f"--shuffle-documents is {seed}, but {train.sources.name} is one plain text: leave it out, or give several "
            "files, a folder or JSON Lines"
        )
    val_names = data.val_path or (provenance.paths_of(run, held_out) if held_out else ())
    held = find(val_names, encoding, field) if val_names else None
    if left_out := [*train.left_out, *(held.left_out if held else ())]:
        report(f"Note: {left_out_words(left_out)}")
    if held and (
        both := {os.path.abspath(file.path) for file in train.sources.files}.intersection(
            os.path.abspath(file.path) for file in held.sources.files
        )
    ):
        raise UserError(f"{min(both)} is a part of both --data-path and --val-path: name it in one of them")
    sample = data.sample if data.sample is not None else info["tokenizer"].get("sample") if info else None
    return Texts(replace(train.sources, seed=seed, sample=sample), held.sources if held else None)


def _blank_tokenizer(
    info: Info | None, preset: str | None, asked: Mapping[str, Any], markers: Sequence[str]
) -> Tokenizer:
    """A tokenizer that has yet to learn, with the settings that `prepare` describes, and these special tokens."""
    config = TokenizerConfig.of(preset)
    if info is not None and preset is None:
        config = TokenizerConfig(**pick(TokenizerConfig, info["tokenizer"]))
        config = replace(config, special_tokens=tuple(config.special_tokens))
    if info is not None and preset is None and config.kind != asked.get("kind", config.kind):
        config = replace(config, split=None, keep_newlines=False)  # they belong to a kind
    config = replace(config, **asked)
    special_tokens = tuple(dict.fromkeys((*config.special_tokens, *markers)))
    return Tokenizer(config.vocab_limit, config.kind, split=config.split, special_tokens=special_tokens,
                     keep_newlines=config.keep_newlines)  # fmt: skip


def _given_tokenizer(asked: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer that --tokenizer names by its path, if it does. Raises UserError if it cannot be used."""
    path = asked.get("kind", TOKENIZERS[0])
    if path in TOKENIZERS:
        return None
    if path == _GPT2.name and not os.path.exists(path):
        if not _GPT2.exists():
            raise UserError(f"--tokenizer {path} is not here yet: `hipgpt fetch gpt2-tokenizer` gets it")
        path = _GPT2
    if not os.path.exists(path):
        raise UserError(
            f"--tokenizer is {shown(path)}, but must be one of {', '.join(TOKENIZERS)}, or a tokenizer.json that exists"
        )
    if others := [flag(key) for key in asked if key != "kind"]:
        raise UserError(f"{others[0]} goes with a tokenizer that is learned, but --tokenizer is {path}: leave it out")
    return Tokenizer.load(path)


def _kept_tokenizer(
    run: Run, info: Info | None, preset: str | None, asked: Mapping[str, Any], given: Tokenizer | None, otherwise: str,
    report: Report,
) -> Tokenizer:  # fmt: skip
    """The run's own tokenizer. Raises UserError if tokens.json, a flag or the preset contradicts it."""
    if info is not None and (now := provenance.sha256(run.tokenizer_path)) != (then := info["tokenizer"]["sha256"]):
        raise UserError(
            f"{run.tokenizer_path} is not the tokenizer that {run.tokens_path.name} was made with "
            f"(sha256 {then:.12}… then, {now:.12}… now): put that one back, or {otherwise}"
        )
    tokenizer = Tokenizer.load(run.tokenizer_path)
    if given is not None:
        if tokenizer not in (given, given.with_special_tokens(MARKERS)):
            raise UserError(
                f"--tokenizer is {asked['kind']}, but {run.tokenizer_path} is another one: leave it out, or {otherwise}"
            )
        return tokenizer
    for key, wanted in asked.items():
        value = getattr(tokenizer, key)
        got_markers = key == "special_tokens" and value == tuple(dict.fromkeys((*wanted, *MARKERS)))
        if wanted != value and not got_markers:
            raise UserError(
                f"{flag(key)} is {wanted}, but {run.tokenizer_path} has {value}: leave it out, or {otherwise}"
            )
    if preset is not None:
        special = tuple(text for text in tokenizer.special_tokens if text not in MARKERS)
        _check_preset(run, replace(tokenizer.config, special_tokens=special), preset, asked, otherwise, report)
    return tokenizer


def _check_preset(
    run: Run, used: TokenizerConfig, preset: str, asked: Mapping[str, Any], otherwise: str, report: Report
) -> None:
    """Compare the tokenizer that a run has with the preset's; settings that the user `asked` for do not count.

    Raises UserError if they differ and the run's is the default one, which hardly anybody chose. Any other tokenizer
    was chosen: it is kept, and the difference is reported.
    """
    wanted = TokenizerConfig.of(preset)
    if {**asdict(wanted), **{key: getattr(used, key) for key in asked}} == asdict(used):
        return
    has, wants = f"run {run.name} has a {used}", f"--preset {preset} has a {wanted}"
    if used == TokenizerConfig.of(None):
        keep = f"--tokenizer {used.kind} --vocab-size {used.vocab_limit}"
        raise UserError(f"{has}, but {wants}: keep the run's with {keep}, or {otherwise}")
    report(f"Note: {has} and keeps it; {wants}")


def _kept_tokens(run: Run, text: str, tokenizer: Tokenizer, info: Info, current: Info, report: Report) -> Corpus:
    """The tokens on disk. Raises UserError if they are not those that were written, or not this tokenizer's.

    `info` is tokens.json as it is, and `current` the same with the text's section as it should be.
    """
    current["tokens"] = provenance.check_file(
        run.tokens_path, info["tokens"], f"{run.tokens_path} is not what was written",
        f"put it back, or delete it to encode {text} again",
    )  # fmt: skip
    if "counted" in info:
        current["counted"] = _kept_counted(run, tokenizer, info, report)
    if not run.has_weights and info["dropped"]:
        _raise_if_lossy(text, info["dropped"], info["characters"])
        report(
            f"Note: {text} has lost {info['dropped']:,} of its {info['characters']:,} characters, which the vocabulary "
            "lacks; --tokenizer byte would keep every character"
        )
    if current.get("checked") != (checked := provenance.pair_digest(current)):
        largest = _largest(_opened(run, tokenizer, current).tokens)
        if largest >= tokenizer.vocab_size:
            raise UserError(
                f"{run.tokens_path} has the id {largest}, but the tokenizer has {tokenizer.vocab_size} tokens: "
                f"put the right file back, or delete it to encode {text} again"
            )
        current["checked"] = checked
    if current != info:  # a new time or place for the same content: remember it, to save the digest next time
        write_atomically(run.tokens_info_path, provenance.to_json(current))
    return _opened(run, tokenizer, current)


def _kept_counted(run: Run, tokenizer: Tokenizer, info: Info, report: Report) -> Info:
    """The section of tokens.json about counted.bin, which is made again if it is missing."""
    if run.counted_path.exists():
        complaint, advice = f"{run.counted_path} is not what was written", "put it back, or delete it to make it again"
        return provenance.check_file(run.counted_path, info["counted"], complaint, advice)
    report(f"Note: {run.counted_path} is missing: making it again")
    with atomic_path(run.counted_path) as temporary:
        write_counted(provenance.tokens_of(run, info), temporary, tokenizer)
    return {**info["counted"], **provenance.stamp(run.counted_path)}


def is_text_of(run: Run, corpus: Corpus) -> bool:
    """Whether a run's tokens were made from the very text of `corpus`. False if nothing says so."""
    info = provenance.read(run)
    return info is not None and provenance.identity(info) == provenance.identity(corpus.info)


def adopt(source: Run, run: Run, *, with_tokens: bool) -> None:
    """Give `run` the tokenizer of `source`, and its tokens too unless another text is to be encoded.

    The caller holds the lock of `run`. Raises UserError if `source` has no tokenizer, or `run` another one.
    """
    if not source.tokenizer_path.exists():
        raise UserError(f"{source.tokenizer_path} is missing, and the checkpoint is of no use without it: put it back")
    if not run.tokenizer_path.exists():
        _copy(source.tokenizer_path, run.tokenizer_path)
    elif not _is_same(run.tokenizer_path, source.tokenizer_path):
        raise UserError(f"run {run.name} has another tokenizer than {source.path}: take another --run-name")
    info = provenance.read(source)
    if with_tokens and info is not None and not run.tokens_info_path.exists():
        if source.tokens_path.exists():
            _copy(source.tokens_path, run.tokens_path)
        if source.counted_path.exists():
            _copy(source.counted_path, run.counted_path)
        write_atomically(run.tokens_info_path, provenance.to_json(provenance.moved(info, source, run)))


def adopt_tokenizer(tokenizer: Tokenizer, run: Run, source: str) -> None:
    """Give `run` the tokenizer of the model `source`. The caller holds the lock of `run`.

    Raises UserError if it has another one already. It may be the same with the markers of conversations.
    """
    if not run.tokenizer_path.exists():
        tokenizer.save(run.tokenizer_path)
    elif Tokenizer.load(run.tokenizer_path) not in (tokenizer, tokenizer.with_special_tokens(MARKERS)):
        raise UserError(f"run {run.name} has another tokenizer than {source}: take another --run-name")


def _is_same(first: Path, second: Path) -> bool:
    """Whether two files have the same content. Raises UserError if one is not a regular file."""
    for path in (first, second):
        raise_unless_regular(path)
    return first.read_bytes() == second.read_bytes()


def _copy(source: Path, target: Path) -> None:
    """Raises UserError if `source` is not a regular file: a device might have no end."""
    raise_unless_regular(source)
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
        stat = source.stat()
        with suppress(OSError):  # keep the modification time, by which a file counts as unchanged
            os.utime(temporary, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _make(
    run: Run, texts: Texts, tokenizer: Tokenizer, origin: str, earlier: Info | None, report: Report,
    progress: Progress, ranks: Ranks,
) -> Corpus:  # fmt: skip
    """Train the tokenizer if it is new, encode the texts, and replace the run's files, all of them or none.

    `origin` says where the tokenizer comes from; if it is the run's own, `earlier` is the run's tokens.json.
    """
    for text in filter(None, texts):
        text.raise_if_unreadable()
    staged = run.staged_path
    try:
        with named_as_placed(run):
            tokenizer_file = staged / run.tokenizer_path.name
            if origin == _LEARNED:
                tokenizer = _learned(run, texts.train, tokenizer, report, progress)
            else:
                _remove_leftovers(run)
                staged.mkdir(exist_ok=True)
                if origin == _GIVEN:
                    tokenizer.save(tokenizer_file)
                else:
                    tokenizer_file = run.tokenizer_path
            info = _encode(run, texts, tokenizer, tokenizer_file, report, progress, ranks)
            info["tokenizer"]["given"] = origin == _GIVEN or (
                origin == _KEPT and earlier is not None and earlier["tokenizer"].get("given", False)
            )
            sample = texts.train.sample if origin == _LEARNED else (earlier or info)["tokenizer"].get("sample")
            if sample is not None and origin != _GIVEN:
                info["tokenizer"]["sample"] = sample
            write_atomically(staged / run.tokens_info_path.name, provenance.to_json(info))
            for path in (staged / LEARNED, journal(staged / run.tokens_path.name), journal(staged / _HELD_OUT)):
                path.unlink(missing_ok=True)
            commit(staged, run.committed_path)
            if "counted" not in info:
                remove(run.counted_path)  # of another text
    except BaseException as error:
        if isinstance(error, UserError) or not _remove_leftovers(run):
            remove(staged)
        raise
    return _opened(run, tokenizer, info)


def _remove_leftovers(run: Run) -> bool:
    """Empty the staging folder, if there is one, of all that is of no use to the next call. Whether anything is.

    A vocabulary that has been learned stays, and so do tokens that are known to be whole up to some place.
    """
    there = set(os.listdir(run.staged_path)) if run.staged_path.is_dir() else set()
    useful = {run.tokenizer_path.name, LEARNED} if LEARNED in there else set()
    for name in (run.tokens_path.name, _HELD_OUT):
        if journal(Path(name)).name in there:
            useful |= {name, journal(Path(name)).name}
    for name in there - useful:
        remove(run.staged_path / name)
    return bool(there & useful)


def _learned(run: Run, text: Sources, blank: Tokenizer, report: Report, progress: Progress) -> Tokenizer:
    """A tokenizer with the settings of `blank` that has learned the text, saved in the staging folder.

    If an earlier call learned the same text with the same settings and was then interrupted, that vocabulary is used.
    """
    staged = run.staged_path
    saved = staged / run.tokenizer_path.name
    learned_from = {"text": text.state(), "sample": text.sample, **provenance.settings_of(blank)}
    tokenizer = None
    with suppress(OSError, ValueError, UserError):
        if json.loads((staged / LEARNED).read_text(encoding="utf-8")) == learned_from:
            tokenizer = Tokenizer.load(saved)
    if tokenizer:
        _remove_leftovers(run)
        report("Note: going on with the vocabulary that was learned from this text before")
    else:
        remove(staged)
        staged.mkdir()
        tokenizer = blank
        _train(tokenizer, text, progress)
        tokenizer.save(saved)
        write_atomically(staged / LEARNED, provenance.to_json(learned_from))
    if tokenizer.advice:
        report(f"Note: {tokenizer.advice}")
    if tokenizer.keep_newlines and re.search(r"[^\S\n]\s|\n[^\S\n]", next(text.blocks()).strip()):
        report(
            "Note: --keep-newlines keeps words, line breaks and single spaces, but no indentation and no repeated "
            "spaces; --tokenizer byte keeps every character"
        )
    elif tokenizer.kind == "word" and not tokenizer.keep_newlines and "\n" in next(text.blocks()).strip():
        report(
            "Note: --tokenizer word keeps words and single spaces, but no line breaks, no indentation and no repeated "
            "spaces; --keep-newlines would keep line breaks, and --tokenizer byte every character"
        )
    return tokenizer


def _report_lost(corpus: Corpus, text: Sources, report: Report) -> None:
    """Report the characters of a text that its tokens lack, and markup that they should not have."""
    if lost := corpus.tokenizer.lost:
        said = lost_note(text.name, lost, corpus.info["characters"])
        report(f"Note: {said}; --tokenizer byte would keep every character")
    if not text.marks and not text.files[0].compression and looks_like_json_lines(text.files[0].path):
        report(
            f"Note: {text.name} looks like JSON Lines, and is learned as it stands, with its keys, quotes and escapes: "
            "better let its name end in .jsonl, and make the tokens anew"
        )
    if tables := [file.path for file in text.files if file.format == "plain" and file.path.suffix in (".csv", ".tsv")]:
        report(f"Note: learned as they stand, with all columns: {few(tables)}; --text-field NAME would take one column")


def _raise_if_lossy(text: str, dropped: int, characters: int) -> None:
    if 2 * dropped > characters:
        raise UserError(
            f"{dropped:,} of the {characters:,} characters of {text} are not in the vocabulary, and tokens that lack "
            "more than half of a text are of no use: give another text, or use --tokenizer byte or a larger "
            "--vocab-size for a new run"
        )


def _train(tokenizer: Tokenizer, text: Sources, progress: Progress) -> None:
    # Reading is the first half of the progress, merging the second.
    size = text.learned_size
    with enough_memory(text.name), progress("Training tokenizer", 2 * size) as advance:

        def blocks() -> Iterator[str]:
            read = 0

            def count(data: bytes) -> None:
                nonlocal read
                read += len(data)

            for block in text.learned_blocks(count):
                yield block
                advance(min(read, size))

        try:
            tokenizer.train_bpe(blocks(), lambda done, planned: advance(size + size * done // planned))
        except UserError as error:  # the tokenizer does not know the text's name
            raise UserError(re.sub("^the text ", lambda _: f"{text.name} ", str(error))) from None


def _encode(
    run: Run, texts: Texts, tokenizer: Tokenizer, tokenizer_file: Path, report: Report, progress: Progress, ranks: Ranks
) -> Info:
    """Write tokens.bin into the staging folder, and return its tokens.json. Raises UserError as `_encode_one` does."""
    target = run.staged_path / run.tokens_path.name
    made = _encode_one(run, texts.train, tokenizer, tokenizer_file, target, report, progress, ranks)
    count, characters, dropped = made.tokens, made.characters, made.lost.total()
    sections, tokens_digest = provenance.described(run, texts.train, made.digests.finished), made.tokens_digest
    if texts.held_out:
        part = run.staged_path / _HELD_OUT
        held = _encode_one(run, texts.held_out, tokenizer, tokenizer_file, part, report, progress, ranks)
        count, characters = count + held.tokens, characters + held.characters
        dropped += held.lost.total()
        corpus = provenance.corpus_of(run, texts.held_out, held.digests.finished)
        sections["held_out"] = {**corpus, "count": held.tokens}
    if texts.train.seed is not None:
        (mark,) = tokenizer.encode(end_mark(texts.train, tokenizer))
        shuffled = run.staged_path / _SHUFFLED
        tokens_digest = shuffle_documents(target, shuffled, dtype_of(tokenizer), mark, texts.train.seed)
        os.replace(shuffled, target)
    if texts.held_out:
        move_to_end(run.staged_path / _HELD_OUT, target, tokens_digest)
    info = {
        "dtype": dtype_of(tokenizer).name,
        "count": count,
        "vocab_size": tokenizer.vocab_size,
        "characters": characters,
        "dropped": dropped,
        **sections,
        "tokenizer": provenance.described_tokenizer(tokenizer, tokenizer_file),
        "tokens": {**provenance.stamp(target), "sha256": tokens_digest.hexdigest()},
    }
    if texts.with_conversations:
        counted, tokens = run.staged_path / run.counted_path.name, np.memmap(target, dtype_of(tokenizer), "r")
        learned, digest = write_counted(Tokens([tokens]), counted, tokenizer)
        info["counted"] = {"count": learned, **provenance.stamp(counted), "sha256": digest}
    return {**info, "checked": provenance.pair_digest(info)}


def _encode_one(
    run: Run, text: Sources, tokenizer: Tokenizer, tokenizer_file: Path, target: Path, report: Report,
    progress: Progress, ranks: Ranks,
) -> Joined:  # fmt: skip
    """Write the tokens of a text to a file in the staging folder; returns what `encode` does.

    Raises UserError if the text has no tokens, if more than half of it is not in the vocabulary, and if it is no longer
    as it was when it was found.
    """
    made = encode(run, text, tokenizer, tokenizer_file, target, progress, ranks)
    if made.found:
        report(
            f"Note: {made.found:,} of the {made.tokens:,} tokens of {text.name} were there from an interrupted command"
        )
    if not made.tokens:
        raise UserError(f"{text.name} holds nothing that the tokenizer knows, so it has no tokens: give another text")
    _raise_if_lossy(text.name, made.lost.total(), made.characters)
    for file in text.files:
        if provenance.stamp(file.path) != {"size": file.size, "mtime_ns": file.mtime_ns}:
            raise UserError(f"{file.path} changed while it was being read: try again when nothing writes to it")
    return made


def _opened(run: Run, tokenizer: Tokenizer, info: Info) -> Corpus:
    return Corpus(tokenizer, provenance.tokens_of(run, info), info, provenance.counted_of(run, info))


def _largest(tokens: Tokens) -> int:
    """The largest id. It takes reading all tokens, so tokens.json remembers that they were checked."""
    return max(int(tokens[first : first + _IDS_AT_ONCE].max()) for first in range(0, len(tokens), _IDS_AT_ONCE))
