"""safetensors files, written and read one tensor at a time.

The format (https://github.com/huggingface/safetensors#format) is 8 bytes with the length of a header, little-endian;
the header, which is JSON with the dtype, shape and place of each tensor; and the bytes of the tensors, one after the
other. For example, a file whose only tensor is a float32 [2, 3] has the header
{"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}.

This module replaces the safetensors package, whose writer copies all tensors at once and whose reader maps the file.
Saving or loading a model would then take half as much memory again as training it, and some file systems cannot map
files. Some damaged headers also make its reader crash.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from gpt.errors import UserError, cannot, shown
from gpt.system.reading import COUNT, TEXT, Kind, check, parse, raise_unless_regular

# The dtypes that can be read and written: those of a checkpoint.
DTYPES: dict[str, np.dtype] = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Bits of an element, for all dtypes that a file may have.
_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
# From the 16 bits of each number to float32. BF16 is the upper half of a float32.
_WIDENED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "F16": lambda bits: bits.view("<f2").astype(np.float32),
    "BF16": lambda bits: (bits.astype("<u4") << 16).view("<f4"),
}
FLOATS = ("F32", *_WIDENED)  # the dtypes that `TensorFile.float32` reads
_HEADER_LIMIT = 100_000_000  # bytes: the safetensors package has the same limit

Layout = dict[str, tuple[str, tuple[int, ...]]]  # tensor name → safetensors dtype and shape


class _Entry(NamedTuple):
    """A tensor in a header: its bytes are `start` to `stop`, counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorFile(Mapping[str, np.ndarray]):
    """The tensors in the file at `path`, each read when it is asked for (float32 and int64 ones can be).

    Iterating gives `names`, in their order; other tensors can be asked for too. The file stays open as long as this
    object lives, so it can be read even if another process removes it.

    Raises FileNotFoundError if there is no such file, UserError if it cannot be read, and ValueError, with the reason,
    if it is not a safetensors file.
    """

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self._path, self._names = path, list(names)
        with cannot(f"read {path}"):
            raise_unless_regular(path)
            self._file = open(path, "rb")  # noqa: SIM115, closed by __del__
            self._entries, self._data_start = _read_header(self._file)

    @property
    def layout(self) -> Layout:
        """The dtypes and shapes in the file's header."""
        return {name: (entry.dtype, entry.shape) for name, entry in self._entries.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read(name, DTYPES[self._entries[name].dtype])

    def _read(self, name: str, dtype: np.dtype) -> np.ndarray:
        entry = self._entries[name]
        array = np.empty(entry.shape, dtype)
        rest = memoryview(array.reshape(-1).view(np.uint8).data)
        with cannot(f"read {self._path}"):
            self._file.seek(self._data_start + entry.start)
            while len(rest) and (count := self._file.readinto(rest)):
                rest = rest[count:]
        if len(rest):
            raise UserError(f"{self._path} is damaged: it ends within {name}")
        return array

    def float32(self, name: str) -> np.ndarray:
        """The tensor as float32, if it is F32, F16 or BF16: each of their numbers is one of float32's.

        Raises KeyError for another dtype, and UserError as `__getitem__` does.
        """
        if self._entries[name].dtype == "F32":
            return self[name]
        return _WIDENED[self._entries[name].dtype](self._read(name, np.dtype("<u2")))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


def open_file(path: Path, advice: str, names: Iterable[str] = ()) -> TensorFile:
    """The open file at `path`, whatever its tensors are; iterating gives `names`.

    Raises UserError, which names the file and ends in `advice`, if it is missing or damaged.
    """
    try:
        return TensorFile(path, names)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {advice}") from None
    except ValueError as error:
        reason = shown(str(error), quoted=False)
        raise UserError(f"{path} is damaged or no safetensors file ({reason}): {advice}") from None


def open_tensors(path: Path, layout: Layout, names: Iterable[str], advice: str) -> TensorFile:
    """The open file at `path`, which has the tensors of `layout` and no others; iterating gives `names`.

    Raises UserError, which names the file and ends in `advice`, if it is missing, damaged, or has other tensors.

    Example:
        >>> file = open_tensors(path, {"x": ("F32", (2, 3))}, ["x"], "restore it")
        >>> file["x"].shape
        (2, 3)
    """
    file = open_file(path, advice, names)
    found, misfit = file.layout, f"{path} does not fit its config"
    for name, tensor in layout.items():
        if name not in found:
            raise UserError(f"{misfit}: it has no tensor {name}: {advice}")
        if found[name] != tensor:
            raise UserError(f"{misfit}: {name} is {words(*found[name])}, not {words(*tensor)}: {advice}")
    if extra := found.keys() - layout.keys():
        raise UserError(f"{misfit}: it has the unknown tensor {shown(min(extra), quoted=False)}: {advice}")
    return file


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write float32 and int64 arrays to `path`, byte for byte as the safetensors package does.

    Raises OSError, and KeyError for other dtypes. A `TensorFile` can be passed too: one tensor at a time is then in
    memory.

    Example:
        write_tensors(Path("model.safetensors"), {"x": np.zeros((2, 3), np.float32)})
    """
    # Wide types come first, then names in order, so that every tensor is aligned.
    kinds = {name: (array.dtype, array.shape) for name, array in tensors.items()}
    names = sorted(kinds, key=lambda name: (-kinds[name][0].itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # readers of PyTorch checkpoints ask for it
    end = 0
    for name in names:
        dtype, shape = kinds[name]
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(np.require(tensors[name], requirements="C").reshape(-1).data)


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(map(COUNT.holds, value))


_TENSOR = {
    "dtype": TEXT,
    "shape": Kind("a list of sizes", _are_counts),
    "data_offsets": Kind("two offsets", lambda value: _are_counts(value) and len(value) == 2),
}


def _read_header(file: BinaryIO) -> tuple[dict[str, _Entry], int]:
    """The entry of each tensor in a file, by name, and the place in the file from which their bytes are counted.

    Raises ValueError, with the reason, if it is not a safetensors file: one whose tensors fill it without a gap.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _HEADER_LIMIT):
        raise ValueError("its header is cut off")
    header = check(parse(file.read(length)), {}, "its header")
    header.pop("__metadata__", None)
    entries = {}
    for name, value in header.items():
        found = check(value, _TENSOR, shown(name))
        entries[name] = _Entry(found["dtype"], tuple(found["shape"]), *found["data_offsets"])
    end = max((entry.stop for entry in entries.values()), default=0)
    if size != 8 + length + end:
        raise ValueError(f"it has {size} bytes, but its header says {8 + length + end}")
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        size = entry.stop - entry.start
        if entry.dtype not in _BITS or 8 * size != math.prod(entry.shape) * _BITS[entry.dtype]:
            said = words(entry.dtype, entry.shape)
            raise ValueError(f"{shown(name)} is {said}, a shape that its {size} bytes do not have")
        if entry.start != end:
            raise ValueError("its tensors overlap or leave gaps")
        end = entry.stop
    return entries, 8 + length


def words(dtype: str, shape: Iterable[int]) -> str:
    """Dtype and shape for a message, as in "F32 [2, 3]"."""
    return shown(f"{dtype} {list(shape)}", quoted=False)
