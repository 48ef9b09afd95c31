"""The check of the vendor's matrix products, with a library on the CPU that can be made wrong.

The GPU is the CPU executor, so matmul.hip is real. The commands at the end run on it too.
"""

import ctypes
import faulthandler
import math
import os
import signal
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from gpt.batches import token_order
from gpt.cli import main
from gpt.config import OPTIMIZERS, ModelConfig, TrainConfig
from gpt.errors import UserError
from gpt.model import TrainableGPT
from gpt.ops.gpu import products as gpu_products
from gpt.ops.gpu import selfcheck, verdict
from gpt.ops.gpu.blas import Blas, file_of
from gpt.ops.gpu.device import CupyDevice
from gpt.ops.gpu.operations import GpuOps
from gpt.ops.interface import Affine
from gpt.optim import Optimizer, stacks_here
from gpt.plan import words
from gpt.system import ending
from gpt.trainer import loop
from tests.conftest import last_of_each
from tests.support.blas import AlignedNumpy, build
from tests.support.executor import ExecutorDevice, compiler
from tests.support.instances import NotingDevice

MODEL = ModelConfig(vocab_size=40, max_seq_len=8, num_layers=2, embed_dim=16, num_heads=2, ff_hidden_dim=32)
BATCH = 2
PLAIN, BIAS, GELU, DGELU, ADDED = 1, 4, 164, 192, -1  # the values of `wrong`


class Card(ExecutorDevice):
    """A GPU on ROCm with a library for products."""

    xp, blas_missing = AlignedNumpy(), ""

    def __init__(self, library, cache, choice="auto", card="gfx1201"):
        super().__init__("wmma12")
        self.target, self.blas_choice, self.blas_card, self.cache = card, choice, card, str(cache)
        self.library, self.blas = library, Blas("rocm", 0, 0, library)

    def products(self):
        return ctypes.c_int.in_dll(self.library, "products").value


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    """Let models as small as these use the library's GELU."""
    monkeypatch.setattr(gpu_products, "CACHE_BYTES", 0)


@pytest.fixture
def library(tmp_path):
    if compiler() is None:
        pytest.skip("no C++ compiler")
    return build("rocm", tmp_path / "library.so")


@pytest.fixture
def cache(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


def let(library, **variables):
    kinds = {"deviation": ctypes.c_float}
    for name, value in variables.items():
        kinds.get(name, ctypes.c_int).in_dll(library, name).value = value


def checked(device, precision="bf16", training=True, optimizer="muon"):
    """The device's operations after the check."""
    ops = GpuOps(device, precision)
    stacks = stacks_here(MODEL, TrainConfig(optimizer=optimizer), ops) if training else []
    ops.check_products(MODEL, BATCH, training=training, stacks=stacks)
    return ops


# ---- the verdict -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("training", [False, True])
def test_a_library_that_is_right_is_used_without_a_note(library, cache, precision, training):
    ops = checked(Card(library, cache), precision, training)
    assert ops.has_vendor_blas
    assert ops.notes == []
    assert ops.device.products() >= (20 if training else 4)


@pytest.mark.parametrize("error", [0.125, -0.125, math.nan, math.inf])
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (PLAIN, "[16, 48] [48, 16]ᵀ"),
        (BIAS, "[16, 16] [16, 48] with bias"),
        (GELU, "[16, 16] [16, 32] with gelu"),
        (DGELU, "[16, 16] [16, 32]ᵀ with dgelu"),
        (ADDED, "[16, 16]ᵀ [16, 48] with addition"),
    ],
)
def test_one_wrong_element_in_one_epilogue_is_found_and_named(library, cache, wrong, named, error):
    let(library, wrong=wrong, deviation=error)
    ops = checked(Card(library, cache))
    assert not ops.has_vendor_blas
    (note,) = ops.notes
    assert f" in {named}; matrix products run on hipgpt's own, slower kernel" in note
    assert "row 15, column" in note
    assert "--blas vendor insists" in note
    assert ("nan" in note) == math.isnan(error)


@pytest.mark.parametrize("wrong", [PLAIN, BIAS, ADDED])
def test_the_smallest_error_in_float32_is_found(library, cache, wrong):
    """Sums are exact, so that an error of 2^-16 shows, although some numbers are above 4 and have steps of 2^-21."""
    let(library, wrong=wrong, deviation=2.0**-16)
    assert not checked(Card(library, cache), "fp32").has_vendor_blas


def test_a_product_of_muon_is_checked_too(library, cache):
    """AdamW's training adds to single matrices only, and no prompt multiplies by transposed ones."""
    let(library, wrong=ADDED)
    ops = GpuOps(Card(library, cache), "bf16")
    ops.check_products(MODEL, BATCH, training=False, stacks=[(3, 16, 48), (3, 48, 16)])
    assert not ops.has_vendor_blas
    cases = list(selfcheck.muon_cases([(3, 16, 48), (3, 48, 16)]))
    assert [str(case) for case in cases] == [
        "3 x [16, 48] [48, 16]ᵀ",
        "3 x [16, 16] [16, 48] with addition",
        "3 x [16, 48]ᵀ [48, 16]",
        "3 x [48, 16] [16, 16] with addition",
        "6 x [16, 16] [16, 16] with addition",
    ]


def test_of_a_large_result_the_first_the_middle_and_the_last_rows_are_compared(library, cache, monkeypatch):
    monkeypatch.setattr(selfcheck, "COMPARED", 3 * 16)
    assert checked(Card(library, cache)).has_vendor_blas
    let(library, wrong=BIAS)
    device = Card(library, cache, card="gfx1200")
    checked(device)
    assert "row 15, column 47, in [16, 16] [16, 48] with bias" in device.notes[0]


def test_a_library_that_fails_is_given_up_and_asked_again_at_the_next_start(library, cache):
    let(library, failure=14)
    device = Card(library, cache)
    checked(device)
    assert device.blas is None
    assert "hipBLASLt fails on this GPU: hipblasLtMatmul failed with status 14 in [16, 16] [16, 48]" in device.notes[0]
    let(library, failure=0)
    assert checked(Card(library, cache)).has_vendor_blas


def test_a_library_without_kernels_for_the_gpu_is_given_up_with_a_note(library, cache):
    let(library, refuse=-1)
    device = Card(library, cache)
    checked(device)
    assert device.blas is None
    assert device.notes[0].startswith("Note: hipBLASLt has no kernels for executor-wmma12; matrix products run on")


def test_a_library_without_an_epilogue_is_checked_on_the_product_that_takes_its_place(library, cache):
    let(library, refuse=BIAS)
    assert checked(Card(library, cache), training=False).has_vendor_blas
    let(library, wrong=PLAIN)
    device = Card(library, cache, card="gfx1200")
    checked(device, training=False)
    assert "in [16, 16] [16, 48]; matrix products" in device.notes[0]


# ---- its memory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, BIAS])
def test_the_verdict_is_remembered(library, cache, wrong):
    let(library, wrong=wrong)
    first = Card(library, cache)
    checked(first)
    count = first.products()
    second = Card(library, cache)
    checked(second)
    assert second.products() == count
    assert second.notes == first.notes
    assert (second.blas is None) == (first.blas is None) == bool(wrong)


def test_another_card_precision_or_model_gets_a_verdict_of_its_own(library, cache):
    counts = []
    for card, precision, optimizer in [
        ("gfx1201", "bf16", "muon"), ("gfx1200", "bf16", "muon"), ("gfx1201", "fp32", "muon"),
        ("gfx1201", "bf16", "adamw"), ("gfx1201", "bf16", "muon"),
    ]:  # fmt: skip
        device = Card(library, cache, card=card)
        checked(device, precision, optimizer=optimizer)
        counts.append(device.products())
    assert counts[0] < counts[1] < counts[2] < counts[3] == counts[4]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": "another", "fault": ""}'])
def test_a_verdict_that_cannot_be_read_is_made_again(library, cache, damage):
    checked(Card(library, cache))
    (path,) = cache.iterdir()
    path.write_text(damage, encoding="utf-8")
    let(library, wrong=BIAS)
    assert not checked(Card(library, cache)).has_vendor_blas


def ends_by(number, library, cache):
    """Whether a start whose library raises this signal in its first product ends by it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pytest-xdist has a thread, which the child does not use
        child = os.fork()
    if not child:
        try:
            faulthandler.disable()  # pytest's, which would print where it was
            let(library, crash=number)
            checked(Card(library, cache))
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -number


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV, signal.SIGKILL])
def test_a_library_that_ended_the_program_in_its_check_is_not_used_again(library, cache, number):
    """A GPU's memory fault makes ROCm abort, and a library that hangs can only be killed."""
    assert ends_by(number, library, cache)
    for _ in range(2):
        device = Card(library, cache)
        checked(device)
        assert (device.blas, device.products()) == (None, 0)
        (note,) = device.notes
        assert note.startswith("Note: the last check of hipBLASLt on this GPU crashed, hung or was killed")
        assert f"remove {next(cache.iterdir())} to repeat it" in note
    next(cache.iterdir()).unlink()
    assert checked(Card(library, cache)).has_vendor_blas


def test_vendor_insists_on_a_library_that_ended_the_program(library, cache):
    assert ends_by(signal.SIGABRT, library, cache)
    assert checked(Card(library, cache, "vendor")).has_vendor_blas


def test_a_check_that_another_process_is_at_has_not_ended_it(library, cache, monkeypatch):
    first, seen = Card(library, cache), []

    def meanwhile(*_):
        if not seen:
            seen.append(None)
            seen[0] = checked(Card(library, cache)).notes
        return ""

    monkeypatch.setattr(selfcheck, "_worst", meanwhile)
    assert checked(first).has_vendor_blas
    assert seen == [[]]
    assert len(list(cache.iterdir())) == 1


def test_processes_that_start_at_once_after_a_crash_all_learn_of_it(library, cache, monkeypatch):
    """One removes the file that the crash left, just before another one looks for it."""
    assert ends_by(signal.SIGABRT, library, cache)
    first, second = Card(library, cache), Card(library, cache)
    look = verdict.leftovers

    def late(path):
        monkeypatch.setattr(verdict, "leftovers", look)
        checked(first)
        return look(path)

    monkeypatch.setattr(verdict, "leftovers", late)
    checked(second)
    for device in (first, second):
        assert (device.blas, device.products()) == (None, 0)


def test_a_file_that_a_crash_left_is_there_until_the_verdict_is(library, cache, monkeypatch):
    assert ends_by(signal.SIGABRT, library, cache)
    seen = []
    monkeypatch.setattr(verdict, "discard_leftovers", lambda path: seen.append(path.exists()))
    checked(Card(library, cache))
    assert seen == [True]


def test_a_check_that_is_interrupted_is_made_again(library, cache, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(selfcheck, "_worst", interrupt)
        with pytest.raises(KeyboardInterrupt):
            checked(Card(library, cache))
    assert list(cache.iterdir()) == []
    assert checked(Card(library, cache)).has_vendor_blas


def test_a_line_says_that_the_check_begins_but_only_the_first_time(library, cache, capfd, monkeypatch):
    """A crash or a hang would have no other explanation."""
    monkeypatch.setattr(ending, "_said", set())
    for expected in (1, 0):
        checked(Card(library, cache))
        assert capfd.readouterr().err.count("If the program crashes or hangs here, start it again") == expected
    checked(Card(library, cache, "vendor", card="gfx1200"))
    assert capfd.readouterr().err == ""


def test_of_several_ranks_and_models_the_first_alone_says_it(library, cache, capfd, monkeypatch):
    monkeypatch.setattr(ending, "_said", set())
    said = []
    for is_first in (False, True):
        ending.others(lambda *_: None, is_first)
        try:
            for card in ("gfx1100", "gfx1101"):
                next(cache.iterdir(), cache / "none").unlink(missing_ok=True)
                assert checked(Card(library, cache, card=card)).device.products() > 0
                said.append(capfd.readouterr().err.count("\n"))
        finally:
            ending.others(None)
    assert said == [0, 0, 1, 0]


def test_a_cache_that_cannot_be_written_costs_only_the_time(library, tmp_path):
    for _ in range(2):
        device = Card(library, tmp_path / "absent")
        count = device.products()
        assert checked(device).has_vendor_blas
        assert device.products() > count


def test_a_card_is_told_from_another_by_all_that_changes_its_products(library, tmp_path, monkeypatch):
    from gpt.ops.gpu.device import _card

    class Runtime:
        def runtimeGetVersion(self):  # noqa: N802
            return 70051831

        driverGetVersion = runtimeGetVersion  # noqa: N815

    properties = {"gcnArchName": b"gfx1030", "name": b"Radeon"}
    for name in ("HSA_OVERRIDE_GFX_VERSION", "HIPBLASLT_TENSILE_LIBPATH"):
        monkeypatch.delenv(name, raising=False)
    path = file_of("rocm", library)
    cards = [_card(Runtime(), properties, path)]
    assert cards[0] == _card(Runtime(), properties, path)
    assert "gfx1030" in cards[0]
    for name in ("HSA_OVERRIDE_GFX_VERSION", "HIPBLASLT_TENSILE_LIBPATH"):
        monkeypatch.setenv(name, "10.3.0")
        cards.append(_card(Runtime(), properties, path))
    cards.append(_card(Runtime(), properties | {"name": b"Another"}, path))
    cards.append(_card(Runtime(), properties, file_of("rocm", build("rocm", tmp_path / "upgraded.so"))))
    assert len(set(cards)) == 5


# ---- the products ----------------------------------------------------------------------------------------------------


class Asked:
    """In a library's place: notes the products, and computes none."""

    def __init__(self, accepts):
        self.accepts, self.products = accepts, set()

    def product(self, a, b, out, *, stream, epilogue, into, tf32=False):
        strides = a.strides, b.strides
        key = (a.shape, b.shape, strides, out.dtype.name, epilogue.name, into.addend is None, into.addend is out)
        self.products.add(key)
        return self.accepts(epilogue.name)


@pytest.mark.parametrize("accepts", [lambda name: True, lambda name: name in ("none", "bias"), lambda name: False])
@pytest.mark.parametrize(("optimizer", "lora"), [*((optimizer, None) for optimizer in OPTIMIZERS), ("adamw", 4)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("head_rows", [8192, 16, 12])
@pytest.mark.parametrize("tied", [False, True])
def test_every_product_of_training_is_checked(accepts, optimizer, lora, precision, head_rows, tied, cache, monkeypatch):
    """Checks the list of products against those that the model and the optimizer ask for.

    The head takes all 16 rows at once, or 12 and then 4.
    """
    monkeypatch.setattr(GpuOps, "head_rows", head_rows)
    config = ModelConfig(
        vocab_size=40, max_seq_len=8, num_layers=2, embed_dim=32, num_heads=2, ff_hidden_dim=64, tie_embeddings=tied
    )
    device = NotingDevice("gfx1201", 32, True)
    device.blas_card, device.cache = "gfx1201", str(cache)
    ops = GpuOps(device, precision)
    train = TrainConfig(optimizer=optimizer, lora=lora)
    device.blas = check = Asked(accepts)
    monkeypatch.setattr(selfcheck, "_worst", lambda *_: "")
    ops.check_products(config, BATCH, training=True, stacks=stacks_here(config, train, ops), lora=lora)
    device.blas = training = Asked(accepts)
    model = TrainableGPT(config, ops, BATCH, lora=lora)
    ids = np.zeros((BATCH, 8), np.int32)
    model.loss_and_gradients(ids, ids, token_order(ids), np.ones(1))
    Optimizer(model, train).step(np.full(1, 1e-3, np.float32))
    assert len(training.products) > 10
    assert training.products <= check.products


# ---- --blas ----------------------------------------------------------------------------------------------------------


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


# ---- the commands, on the executor -----------------------------------------------------------------------------------


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
    assert "take an earlier --step, or try --blas own, in case the GPU vendor's library is at fault" in failing.stderr


def test_notes_about_the_gpus_of_other_ranks_are_printed_once():
    ranks = types.SimpleNamespace(gather=lambda notes: [notes, ["Note: a", "Note: b"], ["Note: b", "Note: c"]])
    ops = types.SimpleNamespace(notes=["Note: a"])
    assert words._notes_of_others(ops, ranks) == ["Note: b (on rank 1)", "Note: c (on rank 2)"]
