"""The safetensors format (https://github.com/huggingface/safetensors): written as a stream, read without a mapping.

A file is the length of its header (little-endian uint64), the header (JSON: per tensor its dtype, shape and where its
bytes begin and end behind the header), and the bytes. The safetensors package reads a file by mapping it into memory,
which some file systems refuse; and it writes one through a temporary file of its own, with rights of its own.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_DTYPES = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}  # those of a checkpoint
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write float32 and int64 arrays. Those of the larger items come first, so that all are aligned.

    The entry `format` of the metadata is what readers of PyTorch checkpoints ask for.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    end = 0
    for name, array in ordered:
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in ordered:
            file.write(np.require(array, requirements="C").reshape(-1).view(np.uint8).data)


class UnmappedTensors:
    """A safetensors file on a file system that cannot map it, with the methods of safetensors' `safe_open` used here.

    Raises ValueError for a file that is not one.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb")  # noqa: SIM115  closed at the end of the `with`
        size = os.fstat(self._file.fileno()).st_size
        length = int.from_bytes(self._file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError("its header is cut short")
        self._start, self._header = 8 + length, json.loads(self._file.read(length))
        self._header.pop("__metadata__", None)
        ends = [entry["data_offsets"][1] for entry in self._header.values()]
        if size != self._start + max(ends, default=0):
            raise ValueError("its header does not tell its size")

    def __enter__(self) -> "UnmappedTensors":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def keys(self) -> list[str]:
        return list(self._header)

    def get_slice(self, name: str) -> "_Entry":
        return _Entry(self._header[name])

    def get_tensor(self, name: str) -> np.ndarray:
        entry = self._header[name]
        start, end = entry["data_offsets"]
        dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
        if end - start != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
            raise ValueError(f"the bytes of {name} are not those of its shape")
        self._file.seek(self._start + start)
        return np.fromfile(self._file, dtype, (end - start) // dtype.itemsize).reshape(shape)


class _Entry:
    def __init__(self, entry: dict[str, Any]) -> None:
        self._entry = entry

    def get_dtype(self) -> str:
        return self._entry["dtype"]

    def get_shape(self) -> list[int]:
        return self._entry["shape"]
