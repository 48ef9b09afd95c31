"""`python -m tests.support.fit` checks that compilers make fit code of every kernel, for every AMD and NVIDIA GPU.

amd/table.py and nvidia.py say which compilations there are, and which code is fit. All of them together take two cores
half an hour, so only what has changed is compiled. fit.txt has a line for each compiler, target and file of kernels/:

    clang gfx942 attention.hip 3f0c8d1e5a7b9246

At the end is a digest of all that the code and the judgement depend on: the sources of all instances of the file
without their comments, the compiler's version, and the text of the module that calls it and judges. A line is written
as soon as all instances of the file have been found fit. A line whose digest is another one counts for nothing.

A line may be wrong, for example if the digest misses something. So a random twentieth of what has not changed is
compiled too. `--all` compiles everything.
"""

import hashlib
import os
import random
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from gpt.ops.gpu.sources import Instance
from tests.support import nvidia
from tests.support.amd import compile as amd
from tests.support.amd import hiprtc, table
from tests.support.compilation import Compilation

RECORD = Path(__file__).with_name("fit.txt")
SAMPLED = 1 / 20
# A comment alone on its line, and one behind code. What has a quotation mark may be a part of a string, and what has to
# do with a line that goes on (a backslash) is left as it is.
_COMMENT = re.compile(r'(?<!\\\n)^[ \t]*//[^"\\\n]*\n|[ \t]*//[^"\\\n]*$', re.MULTILINE)


class Group(NamedTuple):
    """The instances of a file that a compiler compiles for a target: a line of fit.txt."""

    compiler: str
    target: str
    file: str

    @classmethod
    def of(cls, compilation: Compilation) -> "Group":
        return cls(compilation.compiler, compilation.target, compilation.instance.file)


def check(
    compilations: Sequence[Compilation],
    judges: Callable[[str, str], str],
    record: Path = RECORD,
    sampled: float = SAMPLED,
    say: Callable[[str], object] = print,
) -> int:
    """Compile what has changed since `record` was written, and a part of the rest. Returns the number of unfit ones.

    `judges(compiler, target)` is the text of all that compiles and judges there; `sampled` is the part, from 0 to 1.
    """
    by_group = {group: list(each) for group, each in groupby(sorted(compilations, key=Group.of), key=Group.of)}
    digests = {group: digest(each, judges(*group[:2])) for group, each in by_group.items()}
    known = {group: text for group, text in _read(record).items() if digests.get(group) == text}
    changed = [each for group, several in by_group.items() if group not in known for each in several]
    same = [each for group in known for each in by_group[group]]
    sample = random.sample(same, round(sampled * len(same)))
    news = f"{len(changed)} are new or have changed, and {len(sample)} of the others try these"
    say(f"{len(compilations)} compilations: {news}")
    left, unfit = {group: len(each) for group, each in by_group.items() if group not in known}, 0
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        asked = {pool.submit(_faults, each): each for each in (*changed, *sample)}
        for result in as_completed(asked):
            compilation, faults = asked[result], result.result()
            group = Group.of(compilation)
            if faults:
                unfit += 1
                known.pop(group, None)
                left.pop(group, None)
                say("\n".join(f"{compilation}: {fault}" for fault in faults))
            elif group in left:
                left[group] -= 1
                if left[group] == 0:
                    known[group] = digests[group]
                    _write(record, known)  # now, so that a run that is interrupted keeps what it has found
    _write(record, known)
    return unfit


def digest(compilations: Iterable[Compilation], judge: str) -> str:
    """16 hexadecimal digits for all that the code of these instances and the judgement depend on."""
    sources = sorted(_code(each.instance) for each in compilations)
    return hashlib.sha256("\0".join((judge, *sources)).encode()).hexdigest()[:16]


@cache  # the same for many targets
def _code(instance: Instance) -> str:
    return _COMMENT.sub("", instance.source)


def judge(compiler: str, target: str) -> str:
    """The version of a compiler, and the text of the modules that call it and judge what it makes."""
    if compiler == "nvrtc":
        version, modules = nvidia.compiler_version(), [nvidia]
    else:
        version, modules = amd.compiler_version(compiler, target), [amd, hiprtc, table]
    return "\0".join((version, *(Path(module.__file__).read_text(encoding="utf-8") for module in modules)))


def _faults(compilation: Compilation) -> list[str]:
    return compilation.faults()


def _read(record: Path) -> dict[Group, str]:
    if not record.exists():
        return {}
    lines = (line.split() for line in record.read_text(encoding="utf-8").splitlines())
    return {Group(*line[:3]): line[3] for line in lines if len(line) == 4}


def _write(record: Path, known: Mapping[Group, str]) -> None:
    record.write_text("".join(f"{' '.join(group)} {text}\n" for group, text in sorted(known.items())), encoding="utf-8")


def main(*options: str) -> int:
    """Returns the exit status: 1 if a kernel is unfit or a compiler is absent."""
    absent = {amd.missing(compiler, target) for compiler, targets in amd.TARGETS.items() for target in targets}
    if reasons := sorted(filter(None, absent | {nvidia.missing()})):
        print(*reasons, sep="\n")
        return 1
    before = _read(RECORD)
    unfit = check([*table.compilations(), *nvidia.compilations()], judge, sampled=1 if "--all" in options else SAMPLED)
    print(f"{unfit or 'none'} of them are unfit")
    if _read(RECORD) != before:
        print(f"{RECORD.name} has changed: commit it")
    return min(unfit, 1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
