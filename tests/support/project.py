"""A working directory in which a text is prepared, for the tests of gpt/prepare."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from gpt.config import DataConfig
from gpt.errors import UserError
from gpt.prepare import Corpus, prepare
from gpt.run import Run

TEXT = "the cat sat on the mat .\n\nthe dog sat on the lög .\n" * 40


class Project:
    """A working directory with data/data.txt and the run `r`."""

    def __init__(self, path: Path) -> None:
        self.notes: list[str] = []
        # The notes that a tokenizer does not keep line breaks. Every new tokenizer of this text gives one.
        self.lossy: list[str] = []
        self.text = path / "data" / "data.txt"
        self.text.parent.mkdir()
        self.text.write_text(TEXT, encoding="utf-8")
        self.run = Run("r", Path("checkpoints"))
        self.files = (self.run.tokenizer_path, self.run.tokens_path, self.run.tokens_info_path)

    def prepare(
        self, *, data_path=(), encoding=None, text_field=None, val_path=(), shuffle_documents=None, tokens=(),
        val_tokens=(), sample=None, **kwargs
    ) -> Corpus:  # fmt: skip
        """`data_path`, `val_path`, `tokens` and `val_tokens` are one name or several."""
        self.notes.clear()
        self.lossy.clear()
        names, held_out, *files = (
            (each,) if isinstance(each, str) else tuple(each or ())
            for each in (data_path, val_path, tokens, val_tokens)
        )
        data = DataConfig(names, encoding, text_field, held_out, shuffle_documents, *files, sample)
        with self.run.lock():
            return prepare(self.run, data=data, report=self.report, **kwargs)

    def report(self, note: str) -> None:
        (self.lossy if "no line breaks" in note else self.notes).append(note)

    def refused(self, **kwargs) -> str:
        """The one line of the error with which `prepare` ends. Asserts that nothing has changed on disk."""
        before = self.snapshot()
        with pytest.raises(UserError) as error:
            self.prepare(**kwargs)
        assert self.snapshot() == before
        assert "\n" not in str(error.value)
        return str(error.value)

    def snapshot(self) -> dict[str, bytes]:
        paths = self.run.path.iterdir() if self.run.path.exists() else ()
        return {path.name: path.read_bytes() for path in paths if path.name != ".lock" and path.is_file()}

    def info(self) -> dict:
        return json.loads(self.run.tokens_info_path.read_text(encoding="utf-8"))

    def add_checkpoint(self) -> None:
        self.run.config_path(10).write_text("{}")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rewrite(path: Path, data: bytes) -> None:
    """Change a file together with its time, by more than the coarsest clock of a file system."""
    later = path.stat().st_mtime_ns + 2_000_000_000
    path.write_bytes(data)
    os.utime(path, ns=(later, later))


def touch(path: Path) -> None:
    rewrite(path, path.read_bytes())


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    rewrite(path, bytes(data))
