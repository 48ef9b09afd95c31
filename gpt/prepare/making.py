"""New tokens of a run.

tokenizer.json, tokens.bin and tokens.json are made in a directory of their own, and one rename lets all of them take
the places of older ones (`gpt.system.files.commit`).
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt import provenance
from gpt.corpus import Sources
from gpt.corpus.conversations import write_counted
from gpt.corpus.kinds import looks_like_json, suffix_of
from gpt.corpus.shuffling import shuffle_documents
from gpt.corpus.sources import Texts, few
from gpt.distributed.ranks import Ranks
from gpt.encode import (
    Joined,
    Progress,
    dtype_of,
    encode,
    end_mark,
    enough_memory,
    journal,
    move_to_end,
    named_as_placed,
)
from gpt.errors import UserError
from gpt.prepare.tokens import Corpus, opened, raise_if_lossy
from gpt.provenance import Info, Report
from gpt.run import Run
from gpt.system.files import commit, remove, write_atomically
from gpt.tokenizer import Tokenizer, lost_note
from gpt.tokens import Tokens

LEARNED = "learned.json"  # lies beside a learned vocabulary, and records its text and settings

_HELD_OUT = "held_out.bin"  # the tokens of the held-out text, until they are appended to the others

_SHUFFLED = "shuffled.bin"  # the tokens with their documents in another order, until they replace the others

_UNSIGNED = "unsigned.bin"  # the tokens without the signs of conversations, until they replace the others


@dataclass(frozen=True)
class Maker:
    """Makes the files of a run in its staging folder, with a tokenizer of one of three origins.

    Each method encodes the texts, together with the other `ranks`, and replaces all of the run's files or none. It
    raises UserError for a text that cannot be used. `report` and `progress` are those of `gpt.prepare.prepare`.
    """

    run: Run
    report: Report
    progress: Progress
    ranks: Ranks

    def with_new(self, texts: Texts, blank: Tokenizer) -> Corpus:
        """The tokens by a tokenizer with the settings of `blank`, which learns the text first."""
        with self._staged(texts):
            tokenizer = self._learned(texts.train, blank)
            info = self._write(texts, tokenizer, self._file(self.run.tokenizer_path), {"sample": texts.train.sample})
        return self._opened(texts, tokenizer, info)

    def with_given(self, texts: Texts, tokenizer: Tokenizer) -> Corpus:
        """The tokens by a tokenizer that becomes the run's own."""
        with self._staged(texts):
            self._remove_leftovers()
            self.run.staged_path.mkdir(exist_ok=True)
            tokenizer.save(self._file(self.run.tokenizer_path))
            info = self._write(texts, tokenizer, self._file(self.run.tokenizer_path), {"given": True})
        return self._opened(texts, tokenizer, info)

    def with_own(self, texts: Texts, tokenizer: Tokenizer, earlier: Info | None) -> Corpus:
        """The tokens by the tokenizer that the run has, and whose file stays as it is.

        `earlier` is the run's tokens.json, which knows the origin of the tokenizer.
        """
        with self._staged(texts):
            self._remove_leftovers()
            self.run.staged_path.mkdir(exist_ok=True)
            info = self._write(texts, tokenizer, self.run.tokenizer_path, earlier["tokenizer"] if earlier else {})
        return self._opened(texts, tokenizer, info)

    def _file(self, place: Path) -> Path:
        """Where a file is made that will get to `place`."""
        return self.run.staged_path / place.name

    @contextmanager
    def _staged(self, texts: Texts) -> Iterator[None]:
        """After an error inside the `with`, keep of the staging folder what the next call can go on with.

        A UserError would come again, so nothing is kept then.
        """
        for text in filter(None, texts):
            text.raise_if_unreadable()
        try:
            with named_as_placed(self.run):
                yield
        except BaseException as error:
            if isinstance(error, UserError) or not self._remove_leftovers():
                remove(self.run.staged_path)
            raise

    def _remove_leftovers(self) -> bool:
        """Empty the staging folder, if there is one, of all that is of no use to the next call. Whether anything is.

        A vocabulary that has been learned stays, and so do tokens that are known to be whole up to some place.
        """
        run = self.run
        there = set(os.listdir(run.staged_path)) if run.staged_path.is_dir() else set()
        useful = {run.tokenizer_path.name, LEARNED} if LEARNED in there else set()
        for name in (run.tokens_path.name, _HELD_OUT):
            if journal(Path(name)).name in there:
                useful |= {name, journal(Path(name)).name}
        for name in there - useful:
            remove(run.staged_path / name)
        return bool(there & useful)

    def _learned(self, text: Sources, blank: Tokenizer) -> Tokenizer:
        """A tokenizer with the settings of `blank` that has learned the text, saved in the staging folder.

        If an earlier call learned the same text with the same settings and was then interrupted, that vocabulary is
        used.
        """
        staged, saved = self.run.staged_path, self._file(self.run.tokenizer_path)
        learned_from = {"text": text.state(), "sample": text.sample, **provenance.settings_of(blank)}
        tokenizer = None
        with suppress(OSError, ValueError, UserError):
            if json.loads((staged / LEARNED).read_text(encoding="utf-8")) == learned_from:
                tokenizer = Tokenizer.load(saved)
        if tokenizer:
            self._remove_leftovers()
            self.report("Note: going on with the vocabulary that was learned from this text before")
        else:
            remove(staged)
            staged.mkdir()
            tokenizer = blank
            _train(tokenizer, text, self.progress)
            tokenizer.save(saved)
            write_atomically(staged / LEARNED, provenance.to_json(learned_from))
        for note in _advice(tokenizer, text):
            self.report(f"Note: {note}")
        return tokenizer

    def _write(self, texts: Texts, tokenizer: Tokenizer, tokenizer_file: Path, origin: Mapping[str, Any]) -> Info:
        """Encode the texts, and let the staged files take the places of the run's. Returns the new tokens.json.

        `origin` may say that the tokenizer was `given`, or the `sample` of the text that it has learned.
        """
        run = self.run
        info = self._encoded(texts, tokenizer, tokenizer_file)
        info["tokenizer"]["given"] = origin.get("given", False)
        if (sample := origin.get("sample")) is not None:
            info["tokenizer"]["sample"] = sample
        write_atomically(self._file(run.tokens_info_path), provenance.to_json(info))
        for name in (LEARNED, journal(Path(run.tokens_path.name)), journal(Path(_HELD_OUT))):
            (run.staged_path / name).unlink(missing_ok=True)
        commit(run.staged_path, run.committed_path)
        if "counted" not in info:
            remove(run.counted_path)  # of another text
        return info

    def _encoded(self, texts: Texts, tokenizer: Tokenizer, tokenizer_file: Path) -> Info:
        """Write tokens.bin into the staging folder, and return its tokens.json. Raises UserError as `_encode` does."""
        run, target = self.run, self._file(self.run.tokens_path)
        made = self._encode(texts.train, tokenizer, tokenizer_file, target)
        count, characters, dropped = made.tokens, made.characters, made.lost.total()
        sections, tokens_digest = provenance.described(run, texts.train, made.digests.finished), made.tokens_digest
        held_out = run.staged_path / _HELD_OUT
        if texts.held_out:
            held = self._encode(texts.held_out, tokenizer, tokenizer_file, held_out)
            count, characters = count + held.tokens, characters + held.characters
            dropped += held.lost.total()
            corpus = provenance.corpus_of(run, texts.held_out, held.digests.finished)
            sections["held_out"] = {**corpus, "count": held.tokens}
        if texts.train.seed is not None:
            (mark,) = tokenizer.encode(end_mark(texts.train, tokenizer))
            shuffled = run.staged_path / _SHUFFLED
            tokens_digest = shuffle_documents(target, shuffled, dtype_of(tokenizer), mark, texts.train.seed)
            os.replace(shuffled, target)
        if texts.with_conversations:
            count, learned, tokens_digest = self._unsigned(target, tokenizer)
            if texts.held_out:
                held_count, held_learned, _ = self._unsigned(held_out, tokenizer)
                sections["held_out"]["count"] = held_count
                count, learned = count + held_count, learned + held_learned
            counted = self._file(run.counted_path)
            sections["counted"] = {
                "count": learned, **provenance.stamp(counted), "sha256": provenance.sha256(counted)
            }  # fmt: skip
        if texts.held_out:
            move_to_end(held_out, target, tokens_digest)
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
        return {**info, "checked": provenance.pair_digest(info)}

    def _unsigned(self, target: Path, tokenizer: Tokenizer) -> tuple[int, int, "hashlib._Hash"]:
        """Take the signs of conversations out of a token file, and append to counted.bin which tokens are learned.

        Returns the number of tokens, that of learned ones, and the digest of the token file.
        """
        unsigned, digest, count = self.run.staged_path / _UNSIGNED, hashlib.sha256(), 0
        remove(journal(target))  # from here on, an interrupted call has to encode the text again
        with open(unsigned, "wb") as file:

            def write(ids: np.ndarray) -> None:
                nonlocal count
                count += len(ids)
                file.write(ids.data)
                digest.update(ids.data)

            tokens = Tokens([np.memmap(target, dtype_of(tokenizer), "r")])
            learned = write_counted(tokens, self._file(self.run.counted_path), tokenizer, write)
            del tokens  # Windows replaces no file that is mapped
        os.replace(unsigned, target)
        return count, learned, digest

    def _encode(self, text: Sources, tokenizer: Tokenizer, tokenizer_file: Path, target: Path) -> Joined:
        """Write the tokens of a text to a file in the staging folder; returns what `encode` does.

        Raises UserError if the text has no tokens, if more than half of it is not in the vocabulary, and if it is no
        longer as it was when it was found.
        """
        made = encode(self.run, text, tokenizer, tokenizer_file, target, self.progress, self.ranks)
        if made.found:
            self.report(
                f"Note: {made.found:,} of the {made.tokens:,} tokens of {text.name} were there from an interrupted "
                "command"
            )
        if not made.characters:
            raise UserError(f"all documents of {text.name} are empty: give others")
        if not made.tokens:
            raise UserError(
                f"{text.name} holds nothing that the tokenizer knows, so it has no tokens: give another text"
            )
        raise_if_lossy(text.name, made.lost.total(), made.characters)
        if made.without_text.files:
            self.report(f"Note: {made.without_text.words(text)}")
        for file in text.files:
            if provenance.stamp(file.path) != {"size": file.size, "mtime_ns": file.mtime_ns}:
                raise UserError(f"{file.path} changed while it was being read: try again when nothing writes to it")
        return made

    def _opened(self, texts: Texts, tokenizer: Tokenizer, info: Info) -> Corpus:
        """The new tokens. Reports the characters that they lack, and markup that they should not have."""
        corpus = opened(self.run, tokenizer, info)
        text = texts.train
        if lost := tokenizer.lost:
            said = lost_note(text.name, lost, info["characters"])
            self.report(f"Note: {said}; --tokenizer byte would keep every character")
        plain = [file.path for file in text.files if file.format == "plain"]
        is_json = not text.marks and looks_like_json(next(text.blocks()))
        if records := [path for path in plain if is_json or suffix_of(path) == ".json"]:
            self.report(
                f"Note: learned as they stand, with keys, quotes and escapes: {few(records)}; for the texts in JSON, "
                "--text-field NAME takes this field of each object in a list or on a line of a file named .json"
            )
        if tables := [path for path in plain if suffix_of(path) in (".csv", ".tsv")]:
            self.report(
                f"Note: learned as they stand, with all columns: {few(tables)}; --text-field NAME would take one column"
            )
        if "counted" in info:
            self.report(
                f"Note: there are conversations in {few(texts.with_conversations)}: the model learns what the "
                f"assistant says, {info['counted']['count']:,} of {len(corpus.tokens):,} tokens"
            )
        return corpus


def _train(tokenizer: Tokenizer, text: Sources, progress: Progress) -> None:
    # Reading is the first half of the progress, merging the second.
    size = text.learned_size
    with enough_memory(text.name), progress("Training tokenizer", 2 * size) as advance:

        def blocks() -> Iterator[str]:
            read = 0

            def count(data: bytes) -> None:
                nonlocal read
                read += len(data)

            for block in text.learned_blocks(count, tokenizer.last_cut):
                yield block
                advance(min(read, size))

        try:
            tokenizer.train_bpe(blocks(), lambda done, planned: advance(size + size * done // planned))
        except UserError as error:  # the tokenizer does not know the text's name
            raise UserError(re.sub("^the text ", lambda _: f"{text.name} ", str(error))) from None


def _advice(tokenizer: Tokenizer, text: Sources) -> Iterator[str]:
    """What the user should know of a tokenizer that has learned a text: settings that would suit the text better."""
    if tokenizer.advice:
        yield tokenizer.advice
    if tokenizer.kind != "word":
        return
    beginning = next(text.blocks()).strip()
    if tokenizer.keep_newlines and re.search(r"[^\S\n]\s|\n[^\S\n]", beginning):
        yield (
            "--keep-newlines keeps words, line breaks and single spaces, but no indentation and no repeated spaces; "
            "--tokenizer byte keeps every character"
        )
    elif not tokenizer.keep_newlines and "\n" in beginning:
        yield (
            "--tokenizer word keeps words and single spaces, but no line breaks, no indentation and no repeated "
            "spaces; --keep-newlines would keep line breaks, and --tokenizer byte every character"
        )
