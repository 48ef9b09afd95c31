"""The documentation of kernels/ is right.

Its README has an index of files and kernels. The line above each kernel says its grid and block. The comment at the
head of each file lists the defines that the host sets.
"""

import re
from functools import cache
from pathlib import Path

import pytest

from gpt.ops.gpu.sources import Instance
from gpt.system import shipped
from tests.support.instances import instances

KERNELS = Path(str(shipped.kernel("common.h"))).parent
SOURCES = sorted(KERNELS.glob("*.hip"))
INSTANCES = cache(lambda: instances("sm_90", 32, True))
DECLARATION = re.compile(r"^KERNEL\([^)]*\) (\w+)\(", re.MULTILINE)


def index() -> dict[str, list[str]]:
    """{file: the kernels that the README's index lists for it}, in the order of the index."""
    rows = re.findall(
        r"^\| `(\w+\.\w+)` \| (.*?) \|", (KERNELS / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    return {file: re.findall(r"`(\w+)`", names) for file, names in rows}


def test_the_index_lists_every_file_and_header_in_order():
    headers = ["common.h", "tile.h", "tile_float.h", "wgmma.h", "slice.h", "dropout.h", "operand.h"]
    assert list(index()) == [path.name for path in SOURCES] + headers
    assert {path.name for path in KERNELS.glob("*.h")} == set(headers)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_index_lists_the_kernels_of_a_file_in_order(path):
    declared = DECLARATION.findall(path.read_text(encoding="utf-8"))
    assert index()[path.name] == declared == Instance.of(path.name, {}).names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_kernel_says_its_grid_and_block_on_the_line_above(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    for above, line in zip(lines, lines[1:], strict=False):
        if DECLARATION.match(line):
            said = re.fullmatch(r"// grid: .+, block: (\w+)", above)
            assert said, line
            assert line.startswith((f"KERNEL({said[1]})", f"KERNEL({said[1]},")), line


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_head_of_a_file_lists_the_defines_that_the_host_sets(path):
    """A file that does not use the type of the activations, T, need not list it."""
    head = path.read_text(encoding="utf-8").split("#include")[0].replace("\n// ", " ")
    listed = set(re.findall(r"\b[A-Z][A-Z_]*\b", re.sub(r"\([^()]*\)", "", head.split("Set by the host:")[1])))
    (given,) = {frozenset(dict(each.defines)) for each in INSTANCES() if each.file == path.name}
    assert listed | {"T"} == given
