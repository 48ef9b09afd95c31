"""The sources in kernels/ as text for a compiler: an instance is a file, its headers and a set of #defines."""

import functools
import re
from collections.abc import Mapping
from typing import NamedTuple

from gpt.constants import GELU_CUBIC, GELU_SCALE, NORM_EPS
from gpt.system import shipped

_INCLUDE = re.compile(r'^#include "((?:common|tile|tile_float|wgmma|slice|dropout|operand)\.h)"$', re.MULTILINE)

# Macros that every file gets, before its headers.
_CONSTANTS = "".join(
    f"#define {name} {value!r}f\n"
    for name, value in {"NORM_EPS": NORM_EPS, "GELU_SCALE": GELU_SCALE, "GELU_CUBIC": GELU_CUBIC}.items()
)


class Instance(NamedTuple):
    """One compilation: a file of kernels/ and the macros that make it a set of kernels for one shape and type."""

    file: str  # "attention.hip"
    defines: tuple[tuple[str, str], ...]  # sorted, so that equal instances are equal

    @classmethod
    def of(cls, file: str, defines: Mapping[str, object]) -> "Instance":
        return cls(file, tuple(sorted((name, str(value)) for name, value in defines.items())))

    @property
    def source(self) -> str:
        """The whole text; a compiler's messages name the file and line that a reader knows."""
        return expanded(self.file, "".join(f"#define {name} {value}\n" for name, value in self.defines))

    @property
    def names(self) -> list[str]:
        """The kernels in it."""
        return re.findall(r"^KERNEL\([^\n]*?\) (\w+)\(", _text(self.file), re.MULTILINE)

    def __str__(self) -> str:
        return f"{self.file} ({', '.join(f'{name}={value}' for name, value in self.defines)})"


def expanded(file: str, macros: str = "") -> str:
    """The text of a file of kernels/: the header that it includes, or the constants, then `macros`, then its own."""
    text = _text(file)
    include = _INCLUDE.search(text)
    header = expanded(include[1]) if include else _CONSTANTS
    return f'{header}{macros}#line 1 "{file}"\n{_INCLUDE.sub("", text)}'


@functools.cache
def _text(file: str) -> str:
    return shipped.kernel(file).read_text(encoding="utf-8")
