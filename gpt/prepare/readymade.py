"""Tokens that another program has made, as --tokens names them: the run reads them where they lie.

Other tokens are made from a text (making.py). These are there already, so the files are read once to check that the
tokenizer knows all of their ids, and tokens.json records them with their digests. From then on a start compares sizes
and times alone, and maps the files. A run of such tokens has no tokens.bin.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from gpt import provenance
from gpt.config import DataConfig, flag
from gpt.corpus.finding import named
from gpt.corpus.sources import few
from gpt.corpus.token_files import TokenFile, checked, find
from gpt.encode import Progress
from gpt.errors import UserError
from gpt.provenance import Info, Report, locate, remember
from gpt.run import Run
from gpt.system.files import commit, remove, write_atomically
from gpt.tokenizer import Tokenizer

NO_TOKENIZER = (
    "--tokens needs --tokenizer PATH, the tokenizer that made them; for GPT-2's, run `hipgpt fetch gpt2-tokenizer` and "
    "give --tokenizer gpt2"
)
_OPTIONS = {"token_files": "--tokens", "held_out": "--val-tokens"}  # by section of tokens.json


def are_wanted(run: Run, data: DataConfig, info: Info | None, reset: bool, otherwise: str) -> bool:
    """Whether the run's tokens are ready-made. `info` is its tokens.json.

    A new run, and one that `reset` begins anew, may have either; any other keeps what it was made from. Raises
    UserError if the flags contradict each other, or what the run was made from, with the advice `otherwise`.
    """
    texts = {key: value for key, value in asdict(data).items() if key not in ("tokens", "val_tokens")}
    given = next((key for key, value in texts.items() if value not in (None, ())), None)
    if data.tokens and given:
        raise UserError(f"{flag(given)} goes with a text, but --tokens brings tokens: leave one of them out")
    had = info is not None and "token_files" in info
    asked = "--tokens" if data.tokens else "--val-tokens" if data.val_tokens else None
    before = ", ".join(provenance.paths_of(run, info)) if info else ""
    if info is None or reset:
        if data.val_tokens and not data.tokens and not had:
            raise UserError(f"--val-tokens is {', '.join(data.val_tokens)}, but goes with --tokens: give that too")
        if data.tokens or data.data_path or not had:
            return bool(data.tokens)
    if asked and not had:
        raise UserError(
            f"{asked} brings tokens, but run {run.name} was made from {before}: leave it out, or {otherwise}"
        )
    if given and had:
        raise UserError(
            f"{flag(given)} goes with a text, but run {run.name} reads the tokens in {before}: leave it out, or "
            f"{otherwise}"
        )
    return had


def record(
    run: Run, data: DataConfig, info: Info | None, tokenizer: Tokenizer, is_new: bool, progress: Progress
) -> Info:
    """Check the token files that the flags name, or else tokens.json, and write a new tokens.json.

    The tokenizer is written too if it `is_new`. Raises UserError if a file is none, or has an id that the tokenizer
    lacks; the run's files then stay as they were.
    """
    names = _names(run, data, info)
    files = {section: find(names[section], tokenizer.vocab_size, _OPTIONS[section]) for section in names}
    if both := {each.path for each in files["token_files"]} & {each.path for each in files.get("held_out", [])}:
        raise UserError(f"{min(both)} is a part of both --tokens and --val-tokens: name it in one of them")
    sections = {
        section: {
            "paths": [remember(run, Path(name)) for name in names[section]],
            "sources": _checked(run, found, tokenizer, progress),
        }
        for section, found in files.items()
    }
    counts = {section: sum(file.count for file in found) for section, found in files.items()}
    if "held_out" in sections:
        sections["held_out"]["count"] = counts["held_out"]
    staged, tokenizer_file = run.staged_path, run.tokenizer_path
    remove(staged)
    staged.mkdir()
    if is_new:
        tokenizer_file = staged / run.tokenizer_path.name
        tokenizer.save(tokenizer_file)
    made = {
        "count": sum(counts.values()),
        "vocab_size": tokenizer.vocab_size,
        **sections,
        "tokenizer": {
            **provenance.described_tokenizer(tokenizer, tokenizer_file),
            "given": is_new or (info is not None and info["tokenizer"].get("given", False)),
        },
    }
    made["checked"] = provenance.pair_digest(made)
    write_atomically(staged / run.tokens_info_path.name, provenance.to_json(made))
    commit(staged, run.committed_path)
    remove(run.tokens_path)  # of a text that the run was made from before
    return made


def recheck(run: Run, data: DataConfig, info: Info, otherwise: str, report: Report) -> Info:
    """Check that the token files are still those that tokens.json records, and return it with their times as they are.

    Raises UserError if one is missing or has changed, and if the flags name other files, with the advice `otherwise`.
    """
    asked = {"token_files": data.tokens, "held_out": data.val_tokens}
    if data.val_tokens and "held_out" not in info:
        raise UserError(
            f"--val-tokens is {', '.join(data.val_tokens)}, but run {run.name} was made without it: leave it out, or "
            f"{otherwise}"
        )
    now = {
        section: _rechecked(run, asked[section], info[section], option, otherwise, report)
        for section, option in _OPTIONS.items()
        if section in info
    }
    current = {**info, **now}
    if current != info:  # a new time or place for the same content: remember it, to save the digest next time
        write_atomically(run.tokens_info_path, provenance.to_json(current))
    return current


def _names(run: Run, data: DataConfig, info: Info | None) -> dict[str, Sequence[str]]:
    """What names the files of each section: the flags, or else tokens.json."""
    if data.tokens:
        return {"token_files": data.tokens, **({"held_out": data.val_tokens} if data.val_tokens else {})}
    sections = {section: info[section] for section in _OPTIONS if info is not None and section in info}
    return {name: [str(locate(run, path)) for path in section["paths"]] for name, section in sections.items()}


def _checked(run: Run, files: Sequence[TokenFile], tokenizer: Tokenizer, progress: Progress) -> list[Info]:
    """The sections of tokens.json about some files, which are read whole."""
    sections, done = [], 0
    with progress("Checking", sum(file.path.stat().st_size for file in files)) as advance:

        def count(size: int) -> None:
            nonlocal done
            done += size
            advance(done)

        for file in files:
            stamp = provenance.stamp(file.path)
            digest = checked(file, tokenizer.vocab_size, count)
            if provenance.stamp(file.path) != stamp:
                raise UserError(f"{file.path} changed while it was being read: try again when nothing writes to it")
            sections.append({"path": remember(run, file.path), **stamp, "sha256": digest})
    return sections


def _rechecked(run: Run, asked: Sequence[str], section: Info, option: str, otherwise: str, report: Report) -> Info:
    """A section of tokens.json with the times and places of its files as they are."""
    then = section["sources"]
    before = [locate(run, file["path"]) for file in then]
    names = asked or [str(locate(run, path)) for path in section["paths"]]
    now = [path for name in names for path in named(name, option).paths]
    more = [path for path in now if path.absolute() not in {each.absolute() for each in before}]
    if asked and len(now) != len(then):
        raise UserError(
            f"{option} names {len(now):,} files, but run {run.name} was made from {len(then):,}: leave it out to go on "
            f"with those, or {otherwise}"
        )
    if more and not asked:
        has = f"{option} names files that run {run.name} was not made from: {few(more)}"
        report(f"Note: {has}; to take them in, {otherwise}")
    files = []
    for path, file in zip(now if asked else before, then, strict=True):
        if not path.exists():
            raise UserError(f"{path} does not exist, and run {run.name} reads its tokens: put it back, or {otherwise}")
        complaint = f"{path} is not the file whose tokens run {run.name} was made from"
        files.append({**provenance.check_file(path, file, complaint, otherwise), "path": remember(run, path)})
    return {**section, "sources": files, "paths": [remember(run, Path(name)) for name in names]}
