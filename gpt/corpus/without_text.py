"""Documents that have no text, which are left out: how many there are, and where the first of them is.

A document has none if its field or cell is null or an empty string, and a conversation if a field of its form is null.
Tables that were made for something else have such rows. A field that is missing is a mistake in the name, or another
kind of file, so that is an error.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from gpt.corpus.sources import Sources


class WithoutText:
    """The documents without text of a text that is read from place to place.

    `files` has for each file: how many there are, the byte from which on its first one was counted, and its number.
    """

    def __init__(self) -> None:
        self.files: dict[str, Sequence[int]] = {}

    def add(self, path: Path, begin: int, number: int) -> None:
        """Record `number` behind the byte `begin` of a file has none. The records of a file come in their order."""
        self.take({str(path): (1, begin, number)})

    def take(self, files: Mapping[str, Sequence[int]]) -> None:
        """Add those of the next part of the text, which are as in `files`.

        >>> found = WithoutText()
        >>> found.take({"a.jsonl": (2, 0, 7)})
        >>> found.take({"a.jsonl": (1, 5000, 3)})
        >>> found.files
        {'a.jsonl': (3, 0, 7)}
        """
        for path, (count, *place) in files.items():
            before, *first = self.files.get(path, (0, *place))
            self.files[path] = (before + count, *first)

    def words(self, text: Sources) -> str:
        """A line for the user, about at least one of them.

        For example "3 documents of 2 files have no text and are left out, the first in web/a.jsonl, line 7".
        """
        count, (path, (_, begin, number)) = sum(each[0] for each in self.files.values()), next(iter(self.files.items()))
        source = next(source for source in text.files if str(source.path) == path)
        of = f" of {len(self.files):,} files" if len(self.files) > 1 else ""
        documents = f"{count:,} documents{of} have no text and are left out, the first"
        if count == 1:
            documents = "one document has no text and is left out"
        return f"{documents} in {path}, {source.record(begin, number)}"
