"""The record of fit kernels: what has changed is compiled, and nothing that is unfit is ever recorded as fit."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from gpt.ops.gpu.sources import Instance
from tests.support import fit
from tests.support.amd import compile as amd
from tests.support.compilation import Compilation


class FakeInstance(NamedTuple):
    file: str
    source: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class FakeCompilation(Compilation):
    """A compilation that writes down its source in `log`, and whose code is unfit if that says so."""

    log: str

    def faults(self):
        with open(self.log, "a") as log:
            log.write(json.dumps([self.target, self.instance.source]) + "\n")
        return ["3 registers spilled"] * ("spill" in self.instance.source)


@pytest.fixture
def compiled(tmp_path):
    """Function that checks {file: sources} for each target. Returns how many are unfit, and what it has compiled."""
    log, record = tmp_path / "log", tmp_path / "fit.txt"

    def run(sources, targets=("a",), judge="", sampled=0.0):
        log.write_text("")
        compilations = [
            FakeCompilation("cc", target, FakeInstance(file, source), str(log))
            for target in targets
            for file, each in sources.items()
            for source in each
        ]
        unfit = fit.check(compilations, lambda *_: judge, record, sampled, say=lambda _: None)
        return unfit, sorted(tuple(json.loads(line)) for line in log.read_text().splitlines())

    return run


def test_only_files_that_have_changed_are_compiled_again_and_all_of_their_instances(compiled):
    assert compiled({"f": ["1", "2"], "g": ["3"]}) == (0, [("a", "1"), ("a", "2"), ("a", "3")])
    assert compiled({"f": ["1", "2"], "g": ["3"]}) == (0, [])
    assert compiled({"f": ["1", "20"], "g": ["3"]}) == (0, [("a", "1"), ("a", "20")])
    assert compiled({"f": ["1", "20", "21"], "g": ["3"]}) == (0, [("a", "1"), ("a", "20"), ("a", "21")])
    assert compiled({"f": ["1", "20", "21"], "g": ["3"]}, targets="ab")[1] == [
        ("b", each) for each in ("1", "20", "21", "3")
    ]


def test_another_compiler_or_judgement_compiles_everything_again(compiled):
    compiled({"f": ["1"], "g": ["3"]})
    assert len(compiled({"f": ["1"], "g": ["3"]}, judge="clang 20")[1]) == 2


def test_an_unfit_kernel_is_compiled_again_until_it_is_fit(compiled):
    assert compiled({"f": ["1", "spill"], "g": ["3"]})[0] == 1
    assert compiled({"f": ["1", "spill"], "g": ["3"]}) == (1, [("a", "1"), ("a", "spill")])
    assert compiled({"f": ["1", "mended"], "g": ["3"]}) == (0, [("a", "1"), ("a", "mended")])
    assert compiled({"f": ["1", "mended"], "g": ["3"]}) == (0, [])


def test_a_sample_of_what_has_not_changed_finds_a_line_that_lies(compiled, tmp_path):
    sources = {"f": ["1", "spill"]}
    compiled({"f": ["1", "2"]})
    line = tmp_path / "fit.txt"
    instances = [FakeCompilation("cc", "a", FakeInstance("f", source), "") for source in sources["f"]]
    line.write_text(f"cc a f {fit.digest(instances, '')}\n")
    assert compiled(sources) == (0, [])
    assert compiled(sources, sampled=0.5)[1]
    assert compiled(sources, sampled=1.0)[0] == 1
    assert line.read_text() == ""


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("int x;  // one", "int x;  // another", True),
        ("// one\n  // two\nint x;", "int x;", True),
        ("int x;", "int y;", False),
        ('asm("// a");', 'asm("// b");', False),
        ("// one \\\nint x;", "// one\nint x;", False),
        ("#define X \\\n// one\nint x;", "#define X \\\nint x;", False),
    ],
)
def test_a_comment_is_no_change_but_every_other_character_is(before, after, same):
    digests = {fit.digest([FakeCompilation("cc", "a", FakeInstance("f", text), "")], "") for text in (before, after)}
    assert (len(digests) == 1) == same


def test_the_digest_of_a_file_covers_its_headers_and_its_defines():
    def digest(**defines):
        return fit.digest([FakeCompilation("cc", "a", Instance.of("gelu.hip", defines), "")], "")

    assert digest(T="float") != digest(T="bf16")
    assert "KERNEL" in Instance.of("gelu.hip", {}).source
    assert "warp_sum" in Instance.of("gelu.hip", {}).source  # of common.h


@pytest.mark.skipif(bool(amd.missing("clang")), reason=str(amd.missing("clang")))
def test_the_judge_names_the_version_of_the_compiler_and_has_the_limits():
    judge = fit.judge("clang", "gfx942")
    assert f"version {amd.LLVM}." in judge
    assert Path(amd.__file__).read_text() in judge
    assert fit.judge("clang", "gfx950") != judge
