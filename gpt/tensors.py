"""safetensors files, written and read one tensor at a time.

The format (https://github.com/huggingface/safetensors#format) is 8 bytes with the length of a header, little-endian;
the header, JSON with each tensor's dtype, shape and place; and the tensors' bytes in a row. For example a float32
[2, 3] as the only tensor gives {"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}.

Here rather than by the safetensors package, because its writer copies all tensors at once and its reader maps the file:
saving or loading a model would take half as much memory again as training it, and some file systems map nothing.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt.errors import UserError, cannot, shown
from gpt.tensor_files import read_entries

DTYPES = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

class TensorFile(Mapping[str, np.ndarray]):
    """The float32 and int64 tensors of the file at `path`; each is read when it is asked for.

    Iterating gives `names`, in this order; the others can be asked for too. The file stays open as long as this
    object lives, so that nobody can take it away meanwhile. Raises FileNotFoundError if there is none, UserError if it
    cannot be read, ValueError with the reason if it is no such file.
    """

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self._path, self._names = path, list(names)
        with cannot(f"read {path}"):
            self._file = open(path, "rb")  # noqa: SIM115, closed by __del__
            self._entries, self._start = read_entries(self._file)
        end = 0
        for name, entry in sorted(self._entries.items(), key=lambda item: item[1]["data_offsets"]):
            (start, stop), dtype = entry["data_offsets"], DTYPES.get(entry["dtype"])
            if dtype is None or stop - start != math.prod(entry["shape"]) * dtype.itemsize:
                raise ValueError(f"{shown(name)} has a shape that its {stop - start} bytes do not have")
            if start != end:
                raise ValueError("its tensors overlap or leave gaps")
            end = stop

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        array = np.empty(entry["shape"], DTYPES[entry["dtype"]])
        rest = memoryview(array.reshape(-1).view(np.uint8))
        with cannot(f"read {self._path}"):
            self._file.seek(self._start + entry["data_offsets"][0])
            while len(rest) and (count := self._file.readinto(rest)):
                rest = rest[count:]
        if len(rest):
            raise UserError(f"{self._path} is damaged: it ends within {name}")
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write float32 and int64 arrays to `path`, byte for byte as the safetensors package does. Raises OSError."""
    # Wide types come first, then names in order, so that every tensor is aligned.
    kinds = {name: (array.dtype, array.shape) for name, array in tensors.items()}
    names = sorted(kinds, key=lambda name: (-kinds[name][0].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # which readers of PyTorch checkpoints ask for
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
