"""The import rules: the table in docs/architecture.md, held against the program's import statements."""

import ast
import functools
import re
from pathlib import Path

from tests.support import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "gpt").rglob("*.py")
}
LIBRARIES = {  # packages of one device, and the only modules that may import them
    "cupy": {"gpt.ops.gpu.installation", "gpt.distributed.nccl"},
    "mpi4py": {"gpt.distributed.launch", "gpt.distributed.mpi"},
    "numba": {"gpt.ops.cpu.numba_operations", "gpt.ops.cpu.numba_loops"},
    "llvmlite": {"gpt.ops.cpu.numba_operations"},
    "scipy": {"gpt.ops.cpu.numba_loops"},
}


@functools.cache
def imports(path: Path) -> set[str]:
    """The modules that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import, which this test does not resolve"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in names}
    return found


def room(module: str) -> str:
    """The room of a module: "gpt.system.files" → "system", "gpt.ops.interface" → "ops.interface"."""
    parts = module.split(".")[1:]
    return "ops.interface" if parts[:2] == ["ops", "interface"] else parts[0] if parts else "gpt"


def floors() -> list[tuple[str, int]]:
    """The rooms that the table names, each with its floor."""
    table = PAGE.partition("## Import rules")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", table, re.MULTILINE)
    return [(name, int(floor)) for floor, names in rows for name in re.findall(r"`([\w.]+)`", names)]


FLOOR = dict(floors())


def test_every_module_stands_on_exactly_one_floor_of_the_table():
    assert sorted(name for name, _ in floors()) == sorted({room(module) for module in FILES} - {"gpt"})


def test_readme_lists_every_room_and_no_other():
    listed = re.findall(r"^gpt/(\w+)(?:\.py|/) ", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted({room(module) for module in FILES} - {"gpt", "ops.interface"})


def test_a_module_imports_only_from_its_own_room_and_from_floors_below():
    wrong = []
    for module in sorted(FILES.keys() - {"gpt"}):
        own = room(module)
        others = {room(name) for name in imports(FILES[module]) if name.startswith("gpt.")} - {own}
        wrong += [f"{module} imports {other}" for other in sorted(others) if FLOOR[other] >= FLOOR[own]]
    assert not wrong


def test_only_the_operations_know_a_library_of_one_device():
    for library, allowed in LIBRARIES.items():
        using = {m for m, path in FILES.items() if any(name.split(".")[0] == library for name in imports(path))}
        assert using == allowed, library


def test_above_the_operations_only_the_commands_the_plan_and_the_doctor_choose_a_device():
    """A model receives its operations object, so it runs on any device, including a test's."""
    using = {room(module) for module, path in FILES.items() if any(room(name) == "ops" for name in imports(path))}
    assert using <= {"ops", "commands", "library", "plan", "doctor", "distributed"}  # the last one counts the GPUs
