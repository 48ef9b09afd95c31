"""The verdict about the vendor's matrix products is remembered, even if the library ended the program."""

import faulthandler
import os
import signal
import warnings

import pytest

from gpt.ops.gpu import selfcheck, verdict
from gpt.ops.gpu.blas import file_of
from gpt.system import ending
from tests.ops.selfcheck.card import BIAS, Card, checked, let
from tests.support.blas import build


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
