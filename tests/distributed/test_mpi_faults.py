"""Training by mpirun that does not reach its end: signals, faults of a rank, a full disk. Nothing hangs or is lost."""

import re
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from gpt.run import Run
from tests.support.mpi import Job

if not sys.platform.startswith("linux"):
    pytest.skip("the tests find the ranks by their environment", allow_module_level=True)

HOST = re.escape(socket.gethostname())
ENDLESS = (
    *("--batch", 1, "--schedule", "constant", "--steps", 1_000_000),
    *("--log-every", 1, "--ckpt-every", 5, "--eval-every", 0, "--keep-last", 2),
)
IMPATIENT = 'from gpt.distributed import control\ncontrol.Control.__init__.__kwdefaults__["silence"] = 2.0\n'
BROKEN = """
from gpt.trainer import TrainStep
work = TrainStep.run
def run(self, number):
    if number == 12:
        raise {error}
    work(self, number)
TrainStep.run = run
"""
ASLEEP = """
from gpt.trainer import TrainStep
from pathlib import Path
import os, time
work = TrainStep.run
def run(self, number):
    if number == 12:
        Path(f"asleep{os.getpid()}").touch()
        time.sleep(60)
    work(self, number)
TrainStep.run = run
"""
KILLED = {
    "before they meet": """
import os
from gpt.distributed import launch
launch.find = lambda environ: os.kill(os.getpid(), 9)
""",
    "after they part": """
import os
from gpt.distributed import keeper
work = keeper.tell
keeper.tell = lambda watching: (work(watching), watching or os.kill(os.getpid(), 9))
""",
}


@pytest.fixture
def begun(train):
    """Start the endless run r on a number of ranks. Returns the job when step 10 is taken, and step 5 is saved."""

    def start(size: int, **kwargs) -> Job:
        job = train.start(size, "r", *ENDLESS, **kwargs)
        job.wait_for("[Step 10]")
        return job

    return start


@pytest.fixture
def goes_on(train):
    """Check that the run r goes on from its last checkpoint. Returns the step of that."""

    def check() -> int:
        step = Run("r").steps()[-1]
        said = train(1, "r", "--resume", "--accumulate", 1, "--steps", step + 1).stdout
        assert f"steps {step + 1} to {step + 1}\n" in said
        assert "Done." in said
        return step

    return check


# ---- faults ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", range(3))
def test_a_rank_that_is_killed_ends_all_and_is_named(begun, goes_on, rank):
    """By itself, MPICH's mpirun kills the others before they can say so, and names any (gpt/distributed/keeper.py)."""
    job = begun(3)
    job.send(rank, signal.SIGKILL)
    end = job.end()
    said = f"Error: rank {rank} on {HOST} \\(process {job.pids[rank]}\\) ended without a word: it was killed, .*\n"
    assert re.fullmatch(said, end.stderr), end
    assert end.noise == ""
    assert end.status != 0
    assert goes_on() >= 5


@pytest.mark.parametrize("when", ["before they meet", "after they part"])
@pytest.mark.parametrize("rank", range(2))
def test_a_rank_that_is_killed_while_nobody_watches_it_ends_all(train, when, rank):
    end = train.start(2, "r", *ENDLESS, "--steps", 1, only={rank: KILLED[when]}).end()
    assert end.status != 0


@pytest.mark.parametrize("rank", range(2))
def test_a_rank_that_hangs_ends_all_and_is_named(begun, goes_on, rank):
    job = begun(2, only=dict.fromkeys(range(2), IMPATIENT))
    job.send(rank, signal.SIGSTOP)
    end = job.end()
    said = f"Error: rank {rank} on {HOST} \\(process {job.pids[rank]}\\) has not been heard of for 2 s: it hangs, .*\n"
    assert re.fullmatch(said, end.stderr), end
    assert end.status != 0
    assert goes_on() >= 5


@pytest.mark.parametrize("rank", range(2))
def test_a_bug_in_a_rank_ends_all_and_shows_its_traceback_and_one_line(begun, goes_on, rank):
    job = begun(2, only={rank: BROKEN.format(error='ZeroDivisionError("by nothing")')})
    end = job.end()
    assert re.findall("^Error: .*", end.stderr, re.MULTILINE) == [
        f"Error: rank {rank} on {socket.gethostname()}: ZeroDivisionError: by nothing"
    ], end
    assert end.stderr.count("Traceback") == 1
    assert end.status == 1
    assert goes_on() == 10


@pytest.mark.parametrize("rank", range(2))
def test_a_rank_without_memory_ends_all_and_is_named(begun, goes_on, rank):
    end = begun(2, only={rank: BROKEN.format(error="MemoryError")}).end()
    assert re.fullmatch(f"Error: rank {rank} on {HOST}: out of memory: lower --batch.*\n", end.stderr), end
    assert end.status == 2
    assert goes_on() == 10


def test_a_full_disk_ends_all_and_keeps_the_checkpoint_before(train, goes_on):
    """The system refuses files of more than 4 KiB, as it would refuse any on a full disk."""
    train(2, "r", *ENDLESS, "--steps", 1)
    full = "import resource\nfrom gpt.distributed.ranks import ManyRanks\nconnect = ManyRanks.connect\n"
    full += "def limited(*args):\n    connect(*args)\n    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
    end = train(2, "r", "--resume", "--steps", 9, only={0: full + "ManyRanks.connect = limited"}, status=2)
    assert re.fullmatch(f"Error: rank 0 on {HOST}: cannot save .*: File too large\n", end.stderr), end
    assert goes_on() == 1


# ---- signals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["mpirun", "first", "last"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_to_mpirun_or_to_any_rank_stops_all_after_a_step_that_is_saved(begun, goes_on, name, target):
    number, job = getattr(signal, name), begun(2)
    if target == "mpirun":
        assert job.pids
        job.process.send_signal(number)
    else:
        job.send(0 if target == "first" else 1, number)
    end = job.end()
    assert end.stderr == ""
    step = int(re.findall(r"^\[Step (\d+)\]", end.stdout, re.MULTILINE)[-1])
    assert end.stdout.count("again to stop at once\n") == (target != "last")
    assert end.stdout.endswith(f"Stopped at step {step}, saved. Go on: hipgpt train --run-name r --resume\n")
    assert end.status == 128 + number
    assert goes_on() == step


def test_a_second_ctrl_c_ends_all_at_once(begun, goes_on):
    job = begun(2, only=dict.fromkeys(range(2), ASLEEP))
    assert job.pids
    deadline = time.monotonic() + 120
    while len(list(Path().glob("asleep*"))) < 2:  # a rank that is not there yet would stop after step 11
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.process.send_signal(signal.SIGINT)
    job.wait_for("Finishing")  # two that a rank has not noticed yet would be one
    job.process.send_signal(signal.SIGINT)
    end = job.end(within=30)  # they would sleep for 60
    # The status is mpirun's, and MPICH's returns 0 now and then after it has killed the ranks.
    assert "Stopped at step" not in end.stdout
    assert goes_on() == 10


def test_a_reader_that_leaves_ends_all_after_a_step_that_is_saved(begun, goes_on):
    job = begun(2)
    assert job.pids
    job.process.stdout.close()
    end = job.end()
    assert end.stderr == "", end
    assert goes_on() >= 10
