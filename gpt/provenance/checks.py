"""The files of a run's tokens and texts are compared with tokens.json before the tokens are used.

`asked` is what the user's flags say now, and `otherwise` the advice at the end of a message: what to do if the files
shall differ.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gpt.config import DataConfig, flag
from gpt.corpus.finding import absolute, named
from gpt.corpus.kinds import NotTextError
from gpt.corpus.sources import few, find
from gpt.corpus.text_file import UTF_8, Source
from gpt.errors import UserError
from gpt.provenance.files import check_file, locate, remember
from gpt.provenance.opening import token_files
from gpt.provenance.record import READING, Info, Report, files_of, paths_of, with_files
from gpt.run import Run


def check_tokens(run: Run, info: Info, complaint: str, advice: str) -> None:
    """Check that the run's tokens are still the recorded ones. Raises UserError, with `complaint` and `advice`.

    `complaint` goes on from the name of the file.
    """
    files = token_files(run, info) if "token_files" in info else [(run.tokens_path, info["tokens"])]
    files += [(run.counted_path, info["counted"])] if "counted" in info else []
    for path, then in files:
        if not path.exists():
            raise UserError(f"{path} does not exist: {advice}")
        check_file(path, then, f"{path} {complaint}", advice)


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
    return with_files(run, info, files, before)


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
    for key in READING:
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
    return with_files(run, info, files, sources.paths)


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


def _count(files: int) -> str:
    return "one file" if files == 1 else f"{files:,} files"
