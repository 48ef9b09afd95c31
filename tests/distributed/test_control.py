"""The control plane, among real processes: shared values, the step to stop after, each way in which a rank ends."""

import os
import re
import signal
import socket
import sys
import time

import pytest

from tests.distributed.conftest import until

if os.name == "nt":
    pytest.skip("Windows has no SIGSTOP and no sessions", allow_module_level=True)
if not sys.platform.startswith("linux"):
    pytest.skip("the tests look for processes in /proc", allow_module_level=True)

pytestmark = pytest.mark.slow  # each test starts several processes, and waits until they have ended

HOST = re.escape(socket.gethostname())
SIZE = 3
AT_ONCE = 40  # seconds: enough on a busy machine, and less than the 60 s of silence after which a rank hangs


def only_line(ends: list[tuple[int, str]]) -> str:
    """The one line that all processes together have printed."""
    lines = "".join(text for _, text in ends).splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def speakers(ends: list[tuple[int, str]]) -> list[int]:
    return [number for number, (_, text) in enumerate(ends) if text]


# ---- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 4])
def test_all_ranks_get_the_first_ones_value_and_the_first_gets_all_of_theirs(ranks, size):
    ranks.start("talk", size)
    assert ranks.end() == [(0, "")] * size
    shared = [{"from": 0, "turn": turn, "text": "ä\n"} for turn in range(2)]
    gathered = [[[rank, turn] for rank in range(size)] for turn in range(2)]
    first, *others = (result["results"] for result in ranks.results())
    assert first == [shared[0], gathered[0], shared[1], gathered[1]]
    assert others == [[shared[0], [], shared[1], []]] * (size - 1)


def test_the_first_rank_may_come_last(ranks):
    ranks.start("talk", SIZE, only=[2, 1])
    time.sleep(0.5)
    ranks.start("talk", SIZE, only=[0])
    assert ranks.end() == [(0, "")] * SIZE


def test_children_of_the_first_rank_are_ranks_too(ranks):
    ranks.start_parent("talk", 4)
    assert ranks.end() == [(0, "")]
    assert len(ranks.results()) == 4
    assert ranks.are_gone(4)


# ---- a stop -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", range(SIZE))
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_to_any_rank_stops_all_after_the_same_step(ranks, rank, name):
    number = getattr(signal, name)
    ranks.start("steps", SIZE)
    ranks.began(SIZE)
    ranks.send(rank, number)
    assert ranks.end() == [(128 + number, "")] * SIZE
    first, *others = ranks.results()
    assert first["stopped_by"] == number
    assert others == [first] * (SIZE - 1)


def test_a_signal_to_all_ranks_is_one_request(ranks):
    ranks.start("steps", SIZE)
    ranks.began(SIZE)
    for rank in range(SIZE):
        ranks.send(rank, signal.SIGTERM)
    assert ranks.end() == [(128 + signal.SIGTERM, "")] * SIZE
    first, *others = ranks.results()
    assert others == [first] * (SIZE - 1)


def test_the_children_stop_with_the_first_rank(ranks):
    ranks.start_parent("steps", SIZE)
    ranks.began(SIZE)
    ranks.send(0, signal.SIGINT)
    assert ranks.end() == [(130, "")]
    first, *others = ranks.results()
    assert others == [first] * (SIZE - 1)
    assert ranks.are_gone(SIZE)


def test_ranks_that_are_behind_go_on_to_the_last_step_that_any_has_begun(ranks):
    ranks.start("late", SIZE)
    assert ranks.end() == [(0, "")] * SIZE
    for result in ranks.results():
        assert result == {"begun": list(range(1, 10)), "stopped_by": 12}


@pytest.mark.parametrize("rank", range(SIZE))
def test_a_signal_before_the_first_step_lets_none_begin(ranks, rank):
    ranks.start("early", SIZE, "--rank", rank)
    assert ranks.end() == [(128 + 15, "")] * SIZE
    assert ranks.results() == [{"may_begin": False}] * SIZE


@pytest.mark.parametrize("rank", range(SIZE))
def test_a_second_signal_ends_that_rank_at_once_and_with_it_all(ranks, rank):
    ranks.start("steps", SIZE)
    ranks.began(SIZE)
    others = [each for each in range(SIZE) if each != rank]
    for other in others:  # so that the ranks cannot agree meanwhile
        ranks.send(other, signal.SIGSTOP)
    ranks.send(rank, signal.SIGINT)
    until((ranks.out / f"{rank}.told").exists)  # two that the process has not noticed yet would be one
    ranks.send(rank, signal.SIGINT)
    assert ranks.processes[rank].wait(timeout=AT_ONCE) == 130
    for other in others:
        ranks.send(other, signal.SIGCONT)
    ends = ranks.end(within=AT_ONCE)
    assert only_line(ends) == f"farewell {rank}"
    assert [status for status, _ in ends] == [130] * SIZE


@pytest.mark.parametrize("rank", range(SIZE))
def test_a_signal_to_a_rank_that_has_nothing_to_save_ends_all(ranks, rank):
    ranks.start("wait", SIZE)
    ranks.began(SIZE)
    ranks.send(rank, signal.SIGINT)
    ends = ranks.end(within=AT_ONCE)
    assert [status for status, _ in ends] == [130] * SIZE
    assert [text.strip() for _, text in ends] == ["Interrupted" if each == rank == 0 else "" for each in range(SIZE)]


# ---- a failure ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["wait", "block", "steps"])
@pytest.mark.parametrize("rank", range(SIZE))
def test_a_rank_that_is_killed_is_named_once_and_ends_all(ranks, scenario, rank):
    ranks.start(scenario, SIZE)
    ranks.began(SIZE)
    ranks.send(rank, signal.SIGKILL)
    ends = ranks.end(within=AT_ONCE)
    said = f"Error: rank {rank} on {HOST} \\(process {ranks.pid(rank)}\\) ended without a word: it was killed, .*"
    assert re.fullmatch(said, only_line(ends))
    assert speakers(ends) == [1 if rank == 0 else 0]
    assert [status for status, _ in ends] == [-9 if each == rank else 1 for each in range(SIZE)]


@pytest.mark.parametrize("rank", range(SIZE))
def test_a_rank_that_hangs_is_named_once_and_killed(ranks, rank):
    ranks.start("block", SIZE, "--silence", 1)
    ranks.began(SIZE)
    ranks.send(rank, signal.SIGSTOP)
    ends = ranks.end(within=15)
    said = f"Error: rank {rank} on {HOST} \\(process {ranks.pid(rank)}\\) has not been heard of for 1 s: it hangs, .*"
    assert re.fullmatch(said, only_line(ends))
    assert speakers(ends) == [1 if rank == 0 else 0]
    assert [status for status, _ in ends] == [-9 if each == rank else 1 for each in range(SIZE)]


@pytest.mark.parametrize("rank", range(SIZE))
def test_a_mistake_that_one_rank_finds_is_the_one_line_of_the_first(ranks, rank):
    ranks.start("wrong", SIZE, "--rank", rank)
    ends = ranks.end(within=AT_ONCE)
    assert re.fullmatch(f"Error: rank {rank} on {HOST}: --batch is 7, but must be 8", only_line(ends))
    assert speakers(ends) == [0]
    assert [status for status, _ in ends] == [2] * SIZE


@pytest.mark.parametrize("rank", range(SIZE))
def test_a_rank_without_memory_is_named(ranks, rank):
    ranks.start("exhaust", SIZE, "--rank", rank)
    ends = ranks.end(within=AT_ONCE)
    assert re.fullmatch(f"Error: rank {rank} on {HOST}: out of memory: .*", only_line(ends))
    assert [status for status, _ in ends] == [2] * SIZE


@pytest.mark.parametrize("rank", range(SIZE))
def test_a_bug_in_one_rank_shows_its_traceback_and_one_line_of_the_first(ranks, rank):
    ranks.start("crash", SIZE, "--rank", rank)
    ends = ranks.end(within=AT_ONCE)
    assert [status for status, _ in ends] == [1] * SIZE
    assert speakers(ends) == sorted({0, rank})
    assert ends[rank][1].rstrip().endswith("ZeroDivisionError: by nothing")
    lines = [line for _, text in ends for line in text.splitlines() if line.startswith("Error: ")]
    (line,) = lines
    assert re.fullmatch(f"Error: rank {rank} on {HOST}: ZeroDivisionError: by nothing", line)


@pytest.mark.parametrize("rank", range(SIZE))
def test_a_call_that_lets_no_other_thread_run_does_not_look_like_a_hang(ranks, rank):
    ranks.start("hold_interpreter", SIZE, "--silence", 3, "--rank", rank)
    assert ranks.end() == [(0, "")] * SIZE


def test_ranks_that_all_stood_still_do_not_take_each_other_for_hanging(ranks):
    ranks.start("steps", SIZE, "--silence", 1)
    ranks.began(SIZE)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for rank in range(SIZE):
            ranks.send(rank, number)
        time.sleep(1.5)
    ranks.send(1, signal.SIGTERM)
    assert ranks.end() == [(128 + signal.SIGTERM, "")] * SIZE


# ---- children of the first rank -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["wait", "block"])
def test_children_end_if_the_first_rank_is_killed(ranks, scenario):
    ranks.start_parent(scenario, SIZE)
    ranks.began(SIZE)
    ranks.send(0, signal.SIGKILL)
    ((status, text),) = ranks.end(within=AT_ONCE)  # standard error is open until the last child has ended
    assert status == -9
    assert re.fullmatch(f"Error: rank 0 on {HOST} .* ended without a word: .*\n", text)
    until(lambda: ranks.are_gone(SIZE), seconds=AT_ONCE)


@pytest.mark.parametrize(("number", "said"), [("SIGKILL", "ended without a word"), ("SIGSTOP", "it hangs")])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_child_that_is_lost_ends_the_first_rank_and_leaves_no_process(ranks, rank, number, said):
    ranks.start_parent("block", SIZE, "--silence", 1)
    ranks.began(SIZE)
    ranks.send(rank, getattr(signal, number))
    ((status, text),) = ranks.end(within=AT_ONCE)
    assert status == 1
    assert text.count("\n") == 1
    assert f"rank {rank} on" in text
    assert said in text
    assert ranks.are_gone(SIZE)


def test_a_second_signal_to_the_first_rank_leaves_no_child(ranks):
    ranks.start_parent("steps", SIZE)
    ranks.began(SIZE)
    ranks.send(1, signal.SIGSTOP)  # so that the ranks cannot agree
    ranks.send(0, signal.SIGINT)
    until((ranks.out / "0.told").exists)
    ranks.send(0, signal.SIGINT)
    assert ranks.end(within=AT_ONCE) == [(130, "farewell 0\n")]
    until(lambda: ranks.are_gone(SIZE), seconds=AT_ONCE)


def test_a_child_that_ends_at_its_start_is_named_at_once(ranks):
    ranks.start_parent("wait", SIZE, "--absent", 2)
    ((status, text),) = ranks.end(within=AT_ONCE)
    assert status == 1
    assert re.fullmatch(f"Error: rank 2 on {HOST} \\(process {ranks.pid(2)}\\) ended .*\n", text)


# ---- ranks that do not meet ---------------------------------------------------------------------------------------


def test_ranks_that_do_not_come_are_named(ranks):
    ranks.start("wait", 5, "--patience", 4, only=[2, 0])  # the second one comes by then, also on a busy machine
    ends = ranks.end(within=AT_ONCE)
    assert re.fullmatch(r"Error: ranks 1, 3, 4 did not come within 4 s: start all 5", only_line(ends))
    assert [status for status, _ in ends] == [2, 2]


def test_a_first_rank_that_does_not_come_is_named_with_its_address(ranks):
    ranks.start("wait", SIZE, "--patience", 1, only=[1])
    ((status, text),) = ranks.end(within=AT_ONCE)
    assert status == 2
    assert text.startswith(f"Error: the first rank cannot be reached at 127.0.0.1:{ranks.port} within 1 s: ")
    assert text.count("\n") == 1


def test_a_taken_port_is_named(ranks):
    with socket.create_server(("", ranks.port)):
        ranks.start("wait", SIZE, only=[0])
        ((status, text),) = ranks.end(within=AT_ONCE)
    assert status == 2
    assert f"port {ranks.port}" in text
    assert text.count("\n") == 1


def test_two_jobs_that_meet_at_one_port_refuse_each_other(ranks):
    ranks.start("wait", SIZE, only=[0, 1], TORCHELASTIC_RUN_ID="a")
    ranks.start("wait", SIZE, only=[2], TORCHELASTIC_RUN_ID="b")
    process = ranks.processes.pop()
    _, text = process.communicate(timeout=AT_ONCE)
    assert process.returncode == 2
    assert text == f"Error: 127.0.0.1:{ranks.port} belongs to another job: set MASTER_PORT to a free port\n"
    ranks.start("wait", SIZE, only=[2], TORCHELASTIC_RUN_ID="a")
    ranks.began(SIZE)  # the first job has not noticed


def test_a_rank_that_comes_twice_is_refused_and_the_others_go_on(ranks):
    ranks.start("wait", SIZE, only=[0, 1])
    until(lambda: (ranks.out / "1.pid").exists())
    time.sleep(0.5)
    ranks.start("wait", SIZE, only=[1])
    process = ranks.processes.pop()
    _, text = process.communicate(timeout=AT_ONCE)
    assert process.returncode == 2
    assert re.fullmatch(f"Error: rank 1 on {HOST} .* is one too many: .*\n", text)
    ranks.start("wait", SIZE, only=[2])
    ranks.began(SIZE)


def test_who_connects_and_says_nothing_does_not_keep_the_ranks_waiting(ranks):
    ranks.start("talk", SIZE, only=[0])
    strangers = []

    def connects() -> bool:
        try:
            strangers.append(socket.create_connection(("127.0.0.1", ranks.port)))
        except OSError:
            return False
        return True

    until(connects)
    ranks.start("talk", SIZE, only=[1, 2])
    assert ranks.end() == [(0, "")] * SIZE
    strangers[0].close()


def test_a_port_with_another_program_behind_it_is_named(ranks):
    with socket.create_server(("127.0.0.1", ranks.port)) as server:
        ranks.start("wait", SIZE, "--patience", 1, only=[1])
        other, _ = server.accept()
        other.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
        ((status, text),) = ranks.end(within=15)
        other.close()
    assert status == 2
    assert f"127.0.0.1:{ranks.port}" in text
    assert text.count("\n") == 1
