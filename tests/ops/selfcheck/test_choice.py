"""--blas: which products a run relies on, and what it says about that. The commands run on the CPU executor."""

import math
import signal
import types
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from gpt.cli import main
from gpt.errors import UserError
from gpt.ops.gpu.device import CupyDevice
from gpt.ops.interface import Affine
from gpt.plan import words
from gpt.trainer import loop
from tests.conftest import last_of_each
from tests.ops.selfcheck.card import BIAS, Card, checked, let
from tests.support.blas import AlignedNumpy


def test_vendor_trusts_a_library_that_is_wrong(library, cache):
    let(library, wrong=BIAS)
    ops = checked(Card(library, cache, "vendor"))
    assert ops.has_vendor_blas
    assert ops.notes == []


@pytest.mark.parametrize(("fault", "reason"), [({"failure": 14}, "failed with status 14"), ({"refuse": -1}, "no kern")])
def test_vendor_is_refused_if_the_library_cannot_compute(library, cache, fault, reason):
    let(library, **fault)
    with pytest.raises(UserError, match=f"--blas vendor: hipBLASLt .*{reason}.*use --blas own"):
        checked(Card(library, cache, "vendor"))


def test_vendor_ends_a_run_in_which_the_library_fails(library, cache):
    device = Card(library, cache, "vendor")
    ops = checked(device)
    let(library, failure=14)
    x = AlignedNumpy.zeros((8, 8), np.uint16)
    with pytest.raises(UserError, match="--blas vendor: hipblasLtMatmul failed with status 14; use --blas own"):
        ops.linear(x, Affine(x, None), AlignedNumpy.zeros((8, 8), np.uint16))


@pytest.mark.parametrize("value", ["vendor", "own"])
@pytest.mark.parametrize("command", ["train", "bench"])
def test_a_cpu_has_no_choice(hipgpt, command, value):
    error = hipgpt(command, "--device", "cpu", "--blas", value, "--steps", 1, status=2).stderr
    assert error == f"Error: --blas {value} needs a GPU: leave it out, or use --device gpu\n"


SMALL = (
    "--dim", 16, "--heads", 2, "--ff", 32, "--layers", 1, "--seq", 8, "--batch", 2, "--eval-every", 0,
    "--val-fraction", 0, "--log-every", 1,
)  # fmt: skip


@pytest.fixture
def run_on(monkeypatch, project, cache):
    """Run a command in this process, with a GPU of these properties in place of the first one: run_on(library, …)."""

    def run(library, *arguments, **faults):
        made = []

        def best(blas="auto"):
            card = Card(library, cache, blas)
            card.blas, card.blas_missing = (None, "") if blas == "own" else (card.blas, "")
            made.append(card)
            return card

        let(library, **{"wrong": 0, "failure": 0, "refuse": 0, **faults})
        monkeypatch.setattr(CupyDevice, "best", best)
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        result = CliRunner().invoke(main, last_of_each(arguments))
        return result, made[0]

    return run


def train(run_on, library, *arguments, **faults):
    return run_on(library, "train", "--run-name", "r", "--device", "gpu", "--steps", 1, *SMALL, *arguments, **faults)


@pytest.mark.parametrize(("blas", "uses"), [("auto", True), ("vendor", True), ("own", False)])
def test_a_run_says_nothing_of_a_library_that_is_right(run_on, library, blas, uses):
    result, card = train(run_on, library, "--blas", blas)
    assert result.exit_code == 0, result.output
    assert "hipBLASLt" not in result.output
    assert (card.products() > 0) == uses
    assert "blas" not in Path("checkpoints/r/r_step1_config.json").read_text(encoding="utf-8")  # it is the machine's


def test_a_run_with_a_wrong_library_trains_on_the_own_kernel_and_says_so(run_on, library):
    result, card = train(run_on, library, wrong=BIAS)
    assert result.exit_code == 0, result.output
    assert card.blas is None
    assert result.output.count("Note: hipBLASLt computes wrong products on this GPU") == 1


def test_a_run_that_turns_not_finite_names_the_option_if_the_library_is_used(run_on, library, monkeypatch):
    monkeypatch.setattr(loop, "MAX_SKIPPED_IN_A_ROW", 1)
    blames = "--grad-clip above 0; or try --blas own, in case the GPU vendor's library is at fault"
    result, _ = train(run_on, library, "--blas", "vendor", wrong=BIAS, deviation=math.nan)
    assert result.exit_code == 2
    assert blames in result.output
    result, _ = train(run_on, library, "--blas", "own", "--lr", 1e30, "--steps", 3, "--run-name", "s")
    assert result.exit_code == 2
    assert "not finite" in result.output
    assert "--blas own" not in result.output


def test_generating_prints_the_note_beside_the_text_and_names_the_option(run_on, library, cache):
    """16 words are read before the last one, so the last row of a product is a word's and no padding."""
    assert train(run_on, library, "--seq", 20)[0].exit_code == 0
    prompt = " ".join(["cat"] * 17)
    write = ("generate", "--run-name", "r", "--device", "gpu", "--prompt", prompt, "--num-tokens", 2, "--temp", 0)
    right, card = run_on(library, *write)
    assert right.exit_code == 0, right.output
    assert card.blas is not None
    assert right.stderr == ""
    for path in cache.iterdir():
        path.unlink()
    wrong, card = run_on(library, *write, wrong=BIAS)
    assert card.blas is None
    assert wrong.stdout == right.stdout
    assert wrong.stderr.startswith("Note: hipBLASLt computes wrong products on this GPU")
    failing, _ = run_on(library, *write, "--blas", "vendor", wrong=BIAS, deviation=math.nan)
    assert failing.exit_code == 2
    assert "take an earlier --step; or try --blas own, in case the GPU vendor's library is at fault" in failing.stderr


def test_notes_about_the_gpus_of_other_ranks_are_printed_once():
    ranks = types.SimpleNamespace(gather=lambda notes: [notes, ["Note: a", "Note: b"], ["Note: b", "Note: c"]])
    ops = types.SimpleNamespace(notes=["Note: a"])
    assert words._notes_of_others(ops, ranks) == ["Note: b (on rank 1)", "Note: c (on rank 2)"]
