"""The sources in kernels/ as text for a compiler: one instance is a file, common.h and a set of #defines."""

import functools
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import NamedTuple


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
        macros = "".join(f"#define {name} {value}\n" for name, value in self.defines)
        body = _text(self.file).replace('#include "common.h"', "", 1)
        return f'#line 1 "common.h"\n{_text("common.h")}\n{macros}#line 1 "{self.file}"\n{body}'

    @property
    def names(self) -> list[str]:
        """The kernels in it."""
        return re.findall(r"^KERNEL\([^\n]*?\) (\w+)\(", _text(self.file), re.MULTILINE)

    def __str__(self) -> str:
        return f"{self.file} ({', '.join(f'{name}={value}' for name, value in self.defines)})"


@functools.cache
def _text(file: str) -> str:
    return (files("gpt") / "kernels" / file).read_text(encoding="utf-8")
