"""A file of some format as a stream of strings.

Each function here takes a file that is open at a place, decompressed, and yields the strings of its documents, with
`mark`, the end-of-text mark or nothing, behind each document. A document without text is left out: `left_out` is called
with the number of its record, or of its line in a table.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from gpt.corpus.conversations import FORMS
from gpt.errors import UserError, reason, shown
from gpt.system.reading import TEXT

_LONGEST_FIELD = (1 << 31) - 1  # of a CSV, in characters; the library's own limit is 131,072
_PART = 1 << 20  # characters of a JSON list that are read at a time
_ROWS = 64  # of a parquet file that become strings at a time; each may be a book
_MOST_NAMED = 12  # fields or columns that a message names
_SEPARATORS = {",": "commas", "\t": "tabs"}  # of the cells of a table
_FIRST, _NEXT = re.compile(r"\s*\[\s*(?=\{)"), re.compile(r"\s*,\s*(?=\{)")  # what stands before an object of a list
_LAST = re.compile(r"\s*\]\s*\Z")
_BROKEN_OFF = re.compile(r"\s*[\[,\]]?\s*\Z")  # such a beginning or end of which more may follow
_NEAR = 16  # characters before the end of a part in which JSON that is broken off there may seem to be wrong
_ANY_SEPARATOR = re.compile(r"[,;|\t]")  # those that other programs write too


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
"""The text in a JSON object or a row, "" if that has a place for one, but none in it. Raises ValueError with what
follows the record's number in a message, if there is no such place."""

LeftOut = Callable[[int], object]


def json_lines(
    file: BinaryIO, path: Path, encoding: str, text_of: TextOf, mark: str, left_out: LeftOut,
    lines_before: Callable[[], int],
) -> Iterator[str]:  # fmt: skip
    """The documents of a JSON Lines file: the text that `text_of` takes from each line. Empty lines are passed over.

    Raises UserError for a line from which none can be taken. The error names the line; `lines_before` counts those in
    front of the first one that is read here, which `left_out` is not told of.
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
        else:
            left_out(number)


def json_list(
    file: BinaryIO, path: Path, encoding: str, text_of: TextOf, mark: str, left_out: LeftOut
) -> Iterator[str]:
    """The documents of a JSON file that is a list of objects: the text that `text_of` takes from each of them.

    Raises UserError, which names the object by its number, for one from which none can be taken.
    """
    for number, record in enumerate(objects(lines(file, encoding, "\n"), path), 1):
        try:
            text = text_of(record)
        except ValueError as error:
            raise UserError(f"{path}, object {number}{error}") from None
        if text:
            yield text
            yield mark
        else:
            left_out(number)


def objects(file: TextIO, path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON list. The file at `path` is never held as a whole. Raises UserError if it is no such list.

    A part of the file ends anywhere. If the rest of it is the beginning of an object, it is tried again with the next
    part, twice as long each time, so that a long object is tried few times.
    """
    decode, before = json.JSONDecoder().raw_decode, _FIRST
    text, place, number = "", 0, 0
    while True:
        wrong = f"the list does not go on behind object {number}"
        if found := before.match(text, place):
            try:
                record, place = decode(text, found.end())
            except (json.JSONDecodeError, RecursionError) as error:  # the latter has no message and no place
                message, where = getattr(error, "msg", str(error)), getattr(error, "pos", 0)
                wrong = f"object {number + 1}, is not JSON ({message})"
                may_go_on = where >= len(text) - _NEAR or message.startswith("Unterminated")  # where a string begins
            else:
                before, number = _NEXT, number + 1
                yield record
                continue
        else:
            may_go_on = bool(_BROKEN_OFF.match(text, place))
        if not may_go_on or not (part := file.read(max(_PART, len(text) - place))):
            break
        text, place = text[place:] + part, 0
    if not number or not _LAST.match(text, place):
        raise UserError(f"{path}, {wrong}: repair it")


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
    """The function that takes the string in the field `field`, as `_value` finds it; null is an empty one."""

    def text_of(record: dict[str, Any]) -> str:
        try:
            text = _value(record, field)
        except KeyError:
            conversations = f"; conversations need {FORMS}"
            raise ValueError(f", {_no_field('field', field, record)}{conversations}") from None
        if text is None:
            return ""
        if not isinstance(text, str):
            advice = "name another with --text-field, or repair the line"
            value = shown(json.dumps(text, ensure_ascii=False), quoted=False)
            raise ValueError(f": the field {field!r} is {value}, but must be text: {advice}")
        if not TEXT.holds(text):
            raise ValueError(f": the field {field!r} has half of a surrogate pair: repair it")
        return text

    return text_of


def _value(record: Mapping[str, Any], field: str) -> Any:
    """The value of a field; for a name such as "a.b" that no field has, of the field b of the object in the field a.

    A null in the place of an object stands for all that could be in it. Raises KeyError if there is no such field.

    >>> record = {"data": {"text": "the cat"}, "a.b": 1, "none": None}
    >>> _value(record, "data.text"), _value(record, "a.b"), _value(record, "none.text")
    ('the cat', 1, None)
    """
    if field in record:
        return record[field]
    outer, dot, inner = field.partition(".")
    if not dot or not isinstance(within := record[outer], dict | None):
        raise KeyError(field)
    return None if within is None else _value(within, inner)


def table(
    file: BinaryIO, path: Path, encoding: str, field: str, mark: str, left_out: LeftOut, delimiter: str
) -> Iterator[str]:
    """The documents of a CSV or TSV file: the cells of the column that is called `field` in the first row.

    Empty lines are passed over. Raises UserError, which names the line, for a row that is too short for this column,
    for one that has more cells than the first row, as a text has whose commas are not quoted, and for one that is not
    CSV.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(lines(file, encoding, ""), delimiter=delimiter, strict=True)
    rows, separators = filter(None, reader), _SEPARATORS[delimiter]
    try:
        header = next(rows, [])
        if field not in header and len(header) == 1 and field in _ANY_SEPARATOR.split(header[0]):
            raise UserError(f"{path} has the columns {shown(header[0])} in one cell: separate cells with {separators}")
        _raise_unless_one(path, field, header)
        column = header.index(field)
        for row in rows:
            if not column < len(row) <= len(header):
                wrong = (
                    f"{len(row)} of {len(header)} cells: repair it" if len(row) < len(header) else
                    f"{len(row)} cells, but the first row {len(header)}: quote a cell that has {separators} in it"
                )  # fmt: skip
                raise UserError(f"{path}, line {reader.line_num}: the row has {wrong}")
            if row[column]:
                yield row[column]
                yield mark
            else:
                left_out(reader.line_num)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}, is not a row of a table ({error}): repair it") from None


class Parquet:
    """A parquet file, read row group by row group.

    Everything here raises UserError if the file is damaged, and the constructor also if pyarrow is missing.
    """

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow as arrow
            import pyarrow.parquet as parquet
        except ImportError:
            raise UserError(f'{path} is a parquet file, which needs pyarrow: pip install "hipgpt[parquet]"') from None
        self._path, self._arrow = path, arrow
        with self._damage_named():
            self._file = parquet.ParquetFile(path)
            self._schema = self._file.schema_arrow
            self.columns: list[str] = self._schema.names

    @contextmanager
    def _damage_named(self) -> Iterator[None]:
        """Turn pyarrow's errors inside the `with` into a UserError. One of the system has a number, and passes through.

        They are ArrowException and OSError, and UnicodeDecodeError if a name is damaged.
        """
        try:
            yield
        except (self._arrow.ArrowException, OSError, UnicodeDecodeError) as error:
            if getattr(error, "errno", None) is not None or isinstance(error, MemoryError):
                raise
            raise UserError(f"{self._path} is damaged or cut short (parquet: {reason(error)}): get it again") from None

    def starts(self) -> list[int]:
        """The first byte of each row group, ascending; 0 for the first one."""
        starts = [0]
        with self._damage_named():
            metadata = self._file.metadata
            for number in range(1, metadata.num_row_groups):
                group = metadata.row_group(number)
                columns = [group.column(each) for each in range(group.num_columns)]
                starts.append(min(each.dictionary_page_offset or each.data_page_offset for each in columns))
        return starts

    def text_column(self, name: str) -> TextOf:
        """The function that takes the text in a column, or, for a name such as "a.b", in a field of its structs.

        Raises UserError if there is no such column of texts.
        """
        kind = self._kind(self._schema, name)
        if kind is None or name in self.columns:
            _raise_unless_one(self._path, name, self.columns)
        values = kind.value_type if self._arrow.types.is_dictionary(kind) else kind  # texts that repeat may be numbered
        if str(values) not in ("string", "large_string", "string_view"):
            raise UserError(f"{self._path}: the column {name!r} holds {kind}, not text: name another with --text-field")

        return lambda record: _value(record, name) or ""

    def _kind(self, fields: Iterable[Any], name: str) -> Any:
        """The type of the column or field that `_value` would find among `fields`; None if there is none."""
        kinds = {each.name: each.type for each in fields}
        outer, dot, inner = name.partition(".")
        if name in kinds or not dot or outer not in kinds or not self._arrow.types.is_struct(kinds[outer]):
            return kinds.get(name)
        return self._kind(kinds[outer], inner)

    def documents(
        self, group: int, columns: Sequence[str], text_of: TextOf, mark: str, left_out: LeftOut
    ) -> Iterator[str]:
        """The documents of a row group: what `text_of` takes from the `columns` of each row.

        Rows are numbered through the whole file. Raises UserError, which names the row, if it can take none.
        """
        for row, record in enumerate(self._records(group, columns), self._rows_before(group) + 1):
            try:
                text = text_of(record)
            except ValueError as error:
                raise UserError(f"{self._path}, row {row}{error}") from None
            if text:
                yield text
                yield mark
            else:
                left_out(row)

    def _rows_before(self, group: int) -> int:
        with self._damage_named():
            return sum(self._file.metadata.row_group(before).num_rows for before in range(group))

    def _records(self, group: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The rows of a row group. Raises UserError, which names the row, for one that is not UTF-8."""
        row = self._rows_before(group)
        with self._damage_named():
            for batch in self._file.iter_batches(_ROWS, row_groups=[group], columns=columns):
                try:
                    records = batch.to_pylist()
                except UnicodeDecodeError:
                    records = self._one_by_one(batch, row)
                yield from records
                row += batch.num_rows

    def _one_by_one(self, batch: Any, row: int) -> Iterator[dict[str, Any]]:
        """The rows of a batch that has one which is not UTF-8. `row` are before it. Raises UserError for that one."""
        for number in range(batch.num_rows):
            try:
                yield from batch.slice(number, 1).to_pylist()
            except UnicodeDecodeError as error:
                where = f"{self._path}, row {row + number + 1}, is not UTF-8 ({reason(error)})"
                raise UserError(f"{where}: get it again, or repair it") from None


def lines(file: BinaryIO, encoding: str, newline: str) -> io.TextIOWrapper:
    """The lines of a file, without the byte order mark that may stand before the first one."""
    return io.TextIOWrapper(file, without_mark(encoding), newline=newline)


def without_mark(encoding: str) -> str:
    """The encoding that takes a byte order mark away, if there is one."""
    return "utf-8-sig" if encoding == "utf-8" else encoding


def _raise_unless_one(path: Path, column: str, columns: list[str]) -> None:
    """UserError unless exactly one of the columns of a file has this name."""
    if column not in columns:
        raise UserError(f"{path} {_no_field('column', column, columns)}")
    if (count := columns.count(column)) > 1:
        raise UserError(f"{path} has {count} columns {column!r}: rename all but the one with the text")


def _no_field(what: str, field: str, names: Iterable[str]) -> str:
    listed = list(map(str, names))
    others = f", only {', '.join(shown(name) for name in listed[:_MOST_NAMED])}" if listed else ""
    more = f" and {len(listed) - _MOST_NAMED} more" if len(listed) > _MOST_NAMED else ""
    return f"has no {what} {field!r}{others}{more}: name the {what} of the text with --text-field"
