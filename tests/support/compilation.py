"""One compilation of a kernel's instance: what a check of all kernels consists of."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from gpt.ops.gpu.sources import Instance


@dataclass(frozen=True)
class Compilation(ABC):
    """A compilation that has to succeed. Its subclasses know how to call a compiler, and judge what it makes."""

    compiler: str  # "nvrtc", "clang" or "hiprtc"
    target: str
    instance: Instance

    def __str__(self) -> str:
        return f"{self.compiler} {self.target} {self.instance}"

    @abstractmethod
    def faults(self) -> list[str]:
        """What is wrong with the code; empty if it is fit to be run."""
