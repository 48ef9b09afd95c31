"""Files that may hold anything, read with care: regular files alone, JSON of a bounded size with every value checked.

A run's files may have been edited by hand, cut short or damaged, or come from somebody else. Reading them either gives
values that the rest of the program can use, or fails with one line that names the file, the key and the value.
"""

import hashlib
import json
import math
import os
import stat
import types
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple, get_args

from gpt.errors import UserError, cannot, shown

SMALL = 1 << 20  # bytes: limit for a file of settings or a line of a log
LARGE = 1 << 30  # bytes: limit for a tokenizer.json, enough for ten million tokens


class Kind(NamedTuple):
    """A condition on a value, in words for messages and as a test. A key that is not `required` may be missing."""

    words: str
    holds: Callable[[Any], bool]
    required: bool = True


# The keys that an object must have, each with the kind of its value or the schema of the object inside.
Schema = Mapping[str, "Kind | Schema"]


def _encodes(value: object, encode: Callable[[str], bytes]) -> bool:
    try:
        return isinstance(value, str) and encode(value) is not None
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _is_finite(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False


INTEGER = Kind("an integer", lambda value: type(value) is int)
COUNT = Kind("an integer from 0 to 2^63 - 1", lambda value: type(value) is int and 0 <= value < 1 << 63)
NUMBER = Kind("a finite number", _is_finite)
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("text", lambda value: _encodes(value, str.encode))
PATH = Kind("a path", lambda value: _encodes(value, os.fsencode) and bool(value) and "\0" not in value)
NAMES = Kind("a list of names", lambda value: isinstance(value, list) and all(map(TEXT.holds, value)))
_KINDS = {int: INTEGER, float: NUMBER, bool: TRUTH, str: TEXT, tuple[str, ...]: NAMES}


def optional(kind: Kind) -> Kind:
    """The same kind, for a key that may be missing."""
    return kind._replace(required=False)


def or_null(kind: Kind) -> Kind:
    """Either null or a value of `kind`."""
    return Kind(f"{kind.words} or null", lambda value: value is None or kind.holds(value))


def one_of(values: Iterable[str]) -> Kind:
    """One of these strings."""
    values = tuple(values)
    return Kind(f"one of {', '.join(values)}", lambda value: isinstance(value, str) and value in values)


def schema_of(cls: type) -> Schema:
    """The schema of a dataclass's fields: keys with a default may be missing, and values of `… | None` may be null.

    Example:
        The field `seed: int = 0` gives {"seed": optional(INTEGER)}; `min_lr: float | None` gives
        {"min_lr": or_null(NUMBER)}.
    """
    schema = {}
    for field in fields(cls):
        alternatives = get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
        kind = _KINDS[next(each for each in alternatives if each is not types.NoneType)]
        if types.NoneType in alternatives:
            kind = or_null(kind)
        schema[field.name] = kind if field.default is MISSING else optional(kind)
    return schema


def irregular(path: str | os.PathLike[str]) -> str | None:
    """The kind of file at a path, such as "a pipe", or None if it is a regular file. Raises OSError as os.stat does."""
    mode = os.stat(path).st_mode
    if stat.S_ISREG(mode):
        return None
    named = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    return next((name for holds, name in named if holds(mode)), "a device")


def raise_unless_regular(path: str | os.PathLike[str]) -> None:
    """Raises UserError if the path is a pipe, a device or a directory: reading one of the first two may never end."""
    if kind := irregular(path):
        raise UserError(f"{path} is {kind}, but must be a regular file")


def read(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises FileNotFoundError if there is no such file, and UserError if it cannot be read for any other reason.
    """
    with cannot(f"read {path}"):
        raise_unless_regular(path)
        with open(path, "rb") as file:
            content = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)  # memory for so many is taken at once
    if len(content) > limit:
        raise UserError(f"{path} is larger than {limit} bytes: its content does not fit its name")
    return content


def sha256(path: Path) -> str:
    """The SHA-256 of a regular file, in hexadecimal. Raises as `read` does, but a file may have any size."""
    digest = hashlib.sha256()
    with cannot(f"read {path}"):
        raise_unless_regular(path)
        with open(path, "rb") as file:
            while data := file.read(1 << 16):
                digest.update(data)
    return digest.hexdigest()


def parse(text: str | bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises ValueError, with the reason, for anything that is not strictly JSON. That includes a key that is given twice,
    NaN, a number beyond the largest float, and brackets that are nested too deeply for Python.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_float)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {shown(key)} stands more than once")
    return made


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _float(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise ValueError(f"{shown(digits)} is beyond the largest float")
    return number


def read_json(path: Path, schema: Schema, what: str, advice: str, limit: int = SMALL) -> dict[str, Any]:
    """The JSON object in a file, with the values that `schema` asks for; it may have other keys too.

    `what` (its purpose) and `advice` (how to repair a bad one) are for messages. Raises FileNotFoundError if there
    is no file, else UserError.

    Example:
        >>> read_json(path, {"model": {"vocab_size": COUNT}}, "a checkpoint's config", "restore it")
        UserError: r_config.json is not a checkpoint's config: model.vocab_size is 'x', but must be an integer from 0 to
        2^63 - 1: restore it
    """
    try:
        found = parse(read(path, limit))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({shown(str(error), quoted=False)}): {advice}") from None
    try:
        return check(found, schema)
    except ValueError as error:
        raise UserError(f"{path} is not {what}: {error}: {advice}") from None


def check(found: object, schema: Schema, place: str = "") -> dict[str, Any]:
    """Returns `found`, a parsed JSON value, once it is known to be an object whose values are as `schema` has them.

    Raises ValueError, which names the first key and value that are not. `place` is the key of `found` itself.

    Example:
        >>> check({"step": -1}, {"step": COUNT}, "checkpoint")
        ValueError: checkpoint.step is -1, but must be an integer from 0 to 2^63 - 1
    """
    if not isinstance(found, dict):
        raise ValueError(f"{place or 'its content'} is {shown(found)}, but must be an object with keys")
    for key, wanted in schema.items():
        inner = f"{place}.{key}" if place else key
        if key not in found:
            if not isinstance(wanted, Kind) or wanted.required:
                raise ValueError(f"it has no {inner}")
        elif not isinstance(wanted, Kind):
            check(found[key], wanted, inner)
        elif not wanted.holds(found[key]):
            raise ValueError(f"{inner} is {shown(found[key])}, but must be {wanted.words}")
    return found
