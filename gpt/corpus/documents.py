"""A file of some format as a stream of strings.

Each function here takes a file that is open at a place, decompressed, and yields the strings of its documents, with
`mark`, the end-of-text mark or nothing, behind each document. A document without text is passed over.
"""

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gpt.errors import UserError, shown

_LONGEST_FIELD = (1 << 31) - 1  # of a CSV, in characters; the library's own limit is 131,072
_ROWS = 1024  # of a parquet file that become strings at a time
_MOST_NAMED = 12  # fields or columns that a message names


def plain(read: Callable[[], bytes], encoding: str, mark: str, is_whole: bool) -> Iterator[str]:
    """The one document of a plain text. `read` gives its next bytes, none at the end.

    No mark comes if more of the document follows, that is, unless it `is_whole`.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    while data := read():
        yield decoder.decode(data)
    if rest := decoder.decode(b"", final=True):
        yield rest
    if is_whole and mark:
        yield mark


TextOf = Callable[[dict[str, Any]], str]
"""The text in a JSON object. Raises ValueError with what follows the line's number in a message, if there is none."""


def json_lines(
    file: BinaryIO, path: Path, encoding: str, text_of: TextOf, mark: str, lines_before: Callable[[], int]
) -> Iterator[str]:
    """The documents of a JSON Lines file: the text that `text_of` takes from each line. Empty lines are passed over.

    Raises UserError for a line from which none can be taken. The error names the line; `lines_before` counts those in
    front of the first one that is read here.
    """
    for number, line in enumerate(lines(file, encoding, "\n"), 1):
        if line.isspace():
            continue
        try:
            text = text_of(_record(line))
        except ValueError as error:
            raise UserError(f"{path}, line {lines_before() + number}{error}") from None
        if text:
            yield text
            yield mark


def _record(line: str) -> dict[str, Any]:
    """The object in a JSON line. Raises ValueError as a TextOf does."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f", is not JSON ({shown(str(error), quoted=False)}): repair it") from None
    if not isinstance(record, dict):
        raise ValueError(", is not a JSON object, but must be one: repair it")
    return record


def text_field(field: str) -> TextOf:
    """The function that takes the string in the field `field`."""

    def text_of(record: dict[str, Any]) -> str:
        if field not in record:
            raise ValueError(f", {_no_field('field', field, record)}")
        text = record[field]
        if not isinstance(text, str):
            advice = "name another with --text-field, or repair the line"
            raise ValueError(f": the field {field!r} is {shown(text)}, but must be text: {advice}")
        if not _encodes(text):
            raise ValueError(f": the field {field!r} has half of a surrogate pair: repair it")
        return text

    return text_of


def table(file: BinaryIO, path: Path, encoding: str, field: str, mark: str, delimiter: str) -> Iterator[str]:
    """The documents of a CSV or TSV file: the cells of the column that is called `field` in the first row.

    Raises UserError, which names the line, for a row that is too short and for one that is not CSV.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    rows = csv.reader(lines(file, encoding, ""), delimiter=delimiter, strict=True)
    try:
        header = next(rows, [])
        if field not in header:
            raise UserError(f"{path} {_no_field('column', field, header)}")
        column = header.index(field)
        for row in rows:
            if row and len(row) <= column:
                raise UserError(
                    f"{path}, line {rows.line_num}: the row has {len(row)} of {len(header)} cells: repair it"
                )
            if row and row[column]:
                yield row[column]
                yield mark
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}, is not a row of a table ({error}): repair it") from None


class Parquet:
    """A parquet file, of which one column holds the documents. It is read row group by row group.

    Raises UserError if pyarrow is missing, if the file is damaged, or if the column is missing or holds no text.
    """

    def __init__(self, path: Path, field: str) -> None:
        try:
            import pyarrow as arrow
            import pyarrow.parquet as parquet
        except ImportError:
            raise UserError(f'{path} is a parquet file, which needs pyarrow: pip install "hipgpt[parquet]"') from None
        self._path, self._field = path, field
        try:
            self._file = parquet.ParquetFile(path)
        except arrow.ArrowInvalid as error:
            raise UserError(f"{path} is not a parquet file ({shown(str(error), quoted=False)}): get it again") from None
        schema = self._file.schema_arrow
        if field not in schema.names:
            raise UserError(f"{path} {_no_field('column', field, schema.names)}")
        kind: Any = schema.field(field).type
        if not any(is_kind(kind) for is_kind in (arrow.types.is_string, arrow.types.is_large_string)):
            raise UserError(f"{path}: the column {field!r} holds {kind}, not text: name another with --text-field")

    def starts(self) -> list[int]:
        """The first byte of each row group, ascending; 0 for the first one."""
        metadata = self._file.metadata
        starts = [0]
        for number in range(1, metadata.num_row_groups):
            group = metadata.row_group(number)
            columns = [group.column(each) for each in range(group.num_columns)]
            starts.append(min(each.dictionary_page_offset or each.data_page_offset for each in columns))
        return starts

    def documents(self, group: int, mark: str) -> Iterator[str]:
        """The documents of a row group. Raises UserError for a row without text."""
        row = sum(self._file.metadata.row_group(before).num_rows for before in range(group))
        for batch in self._file.iter_batches(_ROWS, row_groups=[group], columns=[self._field]):
            for text in batch.column(0).to_pylist():
                row += 1
                if text is None:
                    raise UserError(
                        f"{self._path}, row {row}: the column {self._field!r} has no text: leave the row out"
                    )
                if text:
                    yield text
                    yield mark


def lines(file: BinaryIO, encoding: str, newline: str) -> io.TextIOWrapper:
    """The lines of a file, without the byte order mark that may stand before the first one."""
    return io.TextIOWrapper(file, "utf-8-sig" if encoding == "utf-8" else encoding, newline=newline)


def _encodes(text: str) -> bool:
    try:
        return text.encode() is not None
    except UnicodeEncodeError:
        return False


def _no_field(what: str, field: str, names: Iterable[str]) -> str:
    listed = list(map(str, names))
    others = f", only {', '.join(shown(name) for name in listed[:_MOST_NAMED])}" if listed else ""
    more = f" and {len(listed) - _MOST_NAMED} more" if len(listed) > _MOST_NAMED else ""
    return f"has no {what} {field!r}{others}{more}: name the {what} of the text with --text-field"
