"""Short runs of benchmarks/, the comparisons with PyTorch that users can repeat."""

import os
import re
import subprocess
import sys

import pytest

from tests.support import ROOT


def printed(script, *arguments):
    """The output of a script of benchmarks/, run in a process of its own."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text((ROOT / "data" / "data.txt").read_text()[:200_000])
    return path


@pytest.mark.peers
def test_the_same_training_in_pytorch_has_the_same_losses(text):
    """Float32 rounds by 6e-8; five steps of Adam (it divides by roots of small squares) make that 1e-4 at most."""
    pytest.importorskip("torch")
    output = printed("loss_against_pytorch.py", text, "--preset", "tiny", "--steps", 5, "--device", "cpu")
    losses = [float(loss) for loss in re.findall(r"^\[Step \d\] hipgpt (\d+\.\d+), PyTorch", output, re.M)]
    apart = float(re.search(r"^hipgpt and PyTorch are apart by .* in the mean, (\S+) at most", output, re.M)[1])
    assert len(losses) == 5
    assert apart <= 1e-4 * min(losses)


@pytest.mark.peers
@pytest.mark.parametrize("kind", ["word", "byte"])
def test_a_tokenizer_beside_hugging_faces(text, kind):
    pytest.importorskip("tokenizers")
    output = printed("tokenizer.py", text, "--vocab-size", 500, "--kind", kind, "--rounds", 1)
    rows = re.findall(r"^(\w[\w ]*\w) +\d+\.\d\d (?:s|GiB) +\d+\.\d\d (?:s|GiB) +\d+\.\d\d$", output, re.M)
    assert rows == ["training", "encoding right after", "encoding in a new process", "largest resident memory"]


@pytest.mark.peers
def test_a_step_beside_pytorch_and_the_start_up_times():
    pytest.importorskip("torch")
    output = printed("cpu.py", "small", "start", "--rounds", 1)
    sides = re.findall(r"^  (hipgpt|eager|compile) .* [1-9][\d,.]* ms .* [1-9][\d,]* MiB at most$", output, re.M)
    assert sides == ["hipgpt", "eager", "compile"]
    assert len(re.findall(r"^start: .* \d+\.\d+ s$", output, re.M)) == 3


def test_the_numbers_that_the_page_about_scaling_predicts_are_the_scripts():
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    tables = dict(re.findall(r"^(\w+):\n((?:\|.*\n)+)", printed("scaling.py"), re.M))
    assert list(tables) == ["fit", "cluster", "fixed_batch", "desktop", "memory"]
    for rows in tables.values():
        assert f"-|\n{rows}\n" in page + "\n"  # the whole table: nothing before these rows or after them


def test_the_model_of_scaling_fits_the_measurements():
    """Two runs of one command on one machine differ by up to 1 %, and so do two GPUs."""
    fit = printed("scaling.py").partition("\n\n")[0]
    differences = [float(each) for each in re.findall(r"\| ([+-]\d\.\d) % \|$", fit, re.M)]
    assert len(differences) == 15
    assert max(map(abs, differences)) < 2.5


def rounded_as(said: str, measured: str) -> bool:
    """Whether a number is another one in fewer digits, as "8,800" is "8,838"."""
    digits = len(said.replace(",", "").replace(".", "").strip("0"))
    said_number, number = (float(each.replace(",", "")) for each in (said, measured))
    return float(f"{number:.{digits}g}") == said_number


def test_the_readme_rounds_the_numbers_of_the_page_on_performance():
    page, readme = ((ROOT / path).read_text(encoding="utf-8") for path in ("docs/performance.md", "README.md"))
    said = re.search(
        r"step of the default model takes (\S+) ms \(PyTorch's best: (\S+)\), "
        r"of gpt2-124M with 32 x 1,024 tokens (\S+) \((\S+)\), "
        r"and the two models generate (\S+) and (\S+) tokens per second "
        r"\(Hugging Face's generate: (\S+) and (\S+)\)",
        " ".join(readme.split()),
    ).groups()
    rows = "default model, 32 x 256, bf16", "gpt2-124M, 32 x 1024", "generate, default model", "generate, gpt2-124M"
    measured = [re.search(rf"^\| {row}[^|]*\| ([\d.,]+)[^|]*\| ([\d.,]+)", page, re.MULTILINE).groups() for row in rows]
    steps, texts = [*measured[0], *measured[1]], [*zip(*measured[2:], strict=True)]
    exact = [*steps, *texts[0], *texts[1]]  # README names both speeds of hipgpt first
    assert [each for each in zip(said, exact, strict=True) if not rounded_as(*each)] == []
