"""What a safetensors file says of its tensors, read without the library, which some headers make crash.

A file is the header's length (8 bytes), the header (JSON: a name → dtype, shape and place of each tensor), and the
tensors' bytes. See https://github.com/huggingface/safetensors#format.
"""

import os
from pathlib import Path
from typing import Any, BinaryIO

from gpt.errors import UserError, cannot, shown
from gpt.reading import COUNT, TEXT, Kind, check, parse, raise_unless_regular

Layout = dict[str, tuple[str, tuple[int, ...]]]  # tensor name → safetensors dtype and shape

_HEADER_LIMIT = 100_000_000  # bytes, as the library has it


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(map(COUNT.holds, value))


_TENSOR = {
    "dtype": TEXT,
    "shape": Kind("a list of sizes", _are_counts),
    "data_offsets": Kind("two offsets", lambda value: _are_counts(value) and len(value) == 2),
}


def safetensors_header(path: Path, advice: str) -> Layout:
    """The tensors that a safetensors file says it has, less its metadata.

    Raises UserError, which ends in `advice`, if it is missing, no regular file, unreadable or no safetensors file.
    """
    try:
        with cannot(f"read {path}"):
            raise_unless_regular(path)
            with open(path, "rb") as file:
                entries, _ = read_entries(file)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {advice}") from None
    except ValueError as error:
        raise UserError(
            f"{path} is damaged or no safetensors file ({shown(str(error), quoted=False)}): {advice}"
        ) from None
    return {name: (tensor["dtype"], tuple(tensor["shape"])) for name, tensor in entries.items()}


def check_tensors(path: Path, layout: Layout, advice: str) -> None:
    """Raises UserError, as `safetensors_header` does, unless a file has the tensors of `layout` and no others."""
    found = safetensors_header(path, advice)
    misfit = f"{path} does not fit its config"
    for name, tensor in layout.items():
        if name not in found:
            raise UserError(f"{misfit}: it has no tensor {name}: {advice}")
        if found[name] != tensor:
            raise UserError(f"{misfit}: {name} is {_words(*found[name])}, not {_words(*tensor)}: {advice}")
    if extra := found.keys() - layout.keys():
        raise UserError(f"{misfit}: it has the unknown tensor {shown(min(extra), quoted=False)}: {advice}")


def read_entries(file: BinaryIO) -> tuple[dict[str, dict[str, Any]], int]:
    """name → {dtype, shape, data_offsets} of each tensor in a file, and the place from which the offsets count.

    Raises ValueError with the reason if it is no safetensors file.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _HEADER_LIMIT):
        raise ValueError("its header is cut off")
    header = parse(file.read(length))
    check(header, {}, "its header")
    header.pop("__metadata__", None)
    for name, tensor in header.items():
        check(tensor, _TENSOR, shown(name))
    end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if size != 8 + length + end:
        raise ValueError(f"it has {size} bytes, but its header says {8 + length + end}")
    return header, 8 + length


def _words(dtype: str, shape: tuple[int, ...]) -> str:
    return shown(f"{dtype} {list(shape)}", quoted=False)
