"""Where a process stands among the ranks: the variables of each launcher, and the launchers that are here."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpt.distributed.launch import Place, find, first_host, meeting_point, tasks_per_node
from gpt.errors import UserError
from tests.distributed.conftest import until
from tests.support import ROOT

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "a", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none",
}  # fmt: skip
SRUN = {
    "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "6", "SLURM_PROCID": "4", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1,1", "SLURM_STEP_NODELIST": "gpu[03-04,07],big1",
}  # fmt: skip


def test_a_process_without_a_launcher_is_on_its_own():
    assert find({"MASTER_ADDR": "left-over", "LOCAL_RANK": "0"}) is None


def test_the_variables_of_torchrun_give_a_place():
    assert find(TORCHRUN) == Place(3, 4, 1, 2, "env")


def test_other_schedulers_may_leave_the_local_variables_out():
    assert find({k: v for k, v in TORCHRUN.items() if "LOCAL" not in k}) == Place(3, 4, 0, None, "env")


def test_srun_gives_a_place():
    assert find(SRUN) == Place(4, 6, 0, 1, "slurm")


def test_one_process_under_a_launcher_is_on_its_own():
    assert find({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}) is None
    assert find({**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}) is None
    assert find({"PMI_RANK": "0", "PMI_SIZE": "1"}) is None


def test_a_shell_of_sbatch_is_on_its_own():
    shell = {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8", "SLURM_NNODES": "2"}
    assert find(shell) is None


def test_torchrun_under_srun_is_torchruns():
    assert find({**SRUN, **TORCHRUN}) == Place(3, 4, 1, 2, "env")


def test_srun_with_an_mpi_that_says_the_same_needs_no_mpi4py():
    assert find({**SRUN, "PMI_SIZE": "6", "PMI_RANK": "4"}) == Place(4, 6, 0, 1, "slurm")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"WORLD_SIZE": None}, "RANK is '3', but WORLD_SIZE is not set: set both or none"),
        ({"RANK": None}, "WORLD_SIZE is '4', but RANK is not set: set both or none"),
        ({"RANK": "4"}, "RANK is 4, but WORLD_SIZE is 4: RANK must be below it"),
        ({"RANK": "-1"}, "RANK is '-1', but must be a whole number from 0"),
        ({"WORLD_SIZE": "four"}, "WORLD_SIZE is 'four', but must be a whole number from 0"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is '', but must be a whole number from 0"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK is 2, but LOCAL_WORLD_SIZE is 2: LOCAL_RANK must be below it"),
        ({"LOCAL_WORLD_SIZE": "8"}, "LOCAL_WORLD_SIZE is 8, but WORLD_SIZE only 4"),
        ({"MASTER_ADDR": None}, "WORLD_SIZE is 4, but MASTER_ADDR is not set: all ranks need that of the first"),
        ({"MASTER_PORT": None}, "WORLD_SIZE is 4, but MASTER_PORT is not set: all ranks need that of the first"),
        (
            {"TORCHELASTIC_RUN_ID": None, "PMI_SIZE": "8"},
            "PMI_SIZE is 8, but WORLD_SIZE is 4: unset RANK and WORLD_SIZE to use mpirun's ranks",
        ),
    ],
)  # fmt: skip
def test_variables_that_are_missing_or_wrong_are_named(changes, said):
    environ = {k: v for k, v in {**TORCHRUN, **changes}.items() if v is not None}
    with pytest.raises(UserError) as error:
        find(environ)
    assert str(error.value) == said


def test_a_wrong_variable_of_slurm_is_named():
    with pytest.raises(UserError, match="SLURM_PROCID is 6, but SLURM_STEP_NUM_TASKS is 6"):
        find({**SRUN, "SLURM_PROCID": "6"})


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("gpu[03-04,07],big1", "gpu03"),
        ("big1,gpu[03-04]", "big1"),
        ("big1", "big1"),
        ("n[7,9-12]", "n7"),
        ("rack[2-3]node[01-16]", "rack2node01"),
        ("rack[2,5]-n[01-16]x,other", "rack2-n01x"),
        ("", ""),
    ],
)
def test_the_first_host_of_a_nodelist(nodelist, host):
    assert first_host(nodelist) == host


@pytest.mark.parametrize(
    ("text", "counts"), [("4(x2),3", [4, 4, 3]), ("8", [8]), ("1,2(x3)", [1, 2, 2, 2]), ("", []), ("?", [])]
)
def test_the_tasks_of_each_node(text, counts):
    assert tasks_per_node(text) == counts


# ---- the meeting point --------------------------------------------------------------------------------------------


def meeting(environ):
    return meeting_point(find(environ), environ)


def test_torchruns_ranks_meet_at_the_port_after_its_agents():
    assert meeting(TORCHRUN)[:2] == (("a",), 29500)
    assert meeting({**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "False"})[:2] == (("a",), 29500)
    assert meeting({**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "True"})[:2] == (("a",), 29501)
    highest = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_PORT": "65535"}
    assert meeting({**TORCHRUN, **highest})[:2] == (("a",), 65534)


def test_sruns_ranks_meet_at_the_first_host_at_a_port_of_their_job():
    addresses, port, key, *_ = meeting(SRUN)
    assert addresses == ("gpu03",)
    assert port in range(15_000, 30_000)
    assert meeting({**SRUN, "SLURM_PROCID": "5", "SLURM_NODEID": "3"})[:3] == (addresses, port, key)
    assert meeting({**SRUN, "SLURM_STEP_ID": "1"})[2] != key
    assert meeting({**SRUN, "SLURM_JOB_ID": "78"})[1] != port


def test_a_script_of_sbatch_may_set_the_meeting_point():
    assert meeting({**SRUN, "MASTER_ADDR": "ib0-gpu03", "MASTER_PORT": "1234"})[:2] == (("ib0-gpu03",), 1234)


def test_jobs_have_keys_of_their_own():
    jobs = [{}, {"TORCHELASTIC_RUN_ID": "b"}, {"MASTER_PORT": "1"}, {"MASTER_ADDR": "c"}]
    assert len({meeting({**TORCHRUN, **job}).key for job in jobs}) == len(jobs)


@pytest.mark.parametrize("port", ["0", "65536"])
def test_a_port_that_cannot_be_is_named(port):
    with pytest.raises(UserError, match=f"MASTER_PORT is {port}, but must be from 1 to 65535"):
        meeting({**TORCHRUN, "MASTER_PORT": port})


# ---- children of --gpus -------------------------------------------------------------------------------------------

posix = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


def stat(process: int) -> list[str]:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


@posix
def test_children_have_the_environment_and_a_session_of_their_own(ranks):
    ranks.environ["NCCL_NVLS_ENABLE"] = "0"
    ranks.start_parent("block", 3)
    ranks.began(3)
    places = []
    for rank in (1, 2):
        lines = Path(f"/proc/{ranks.pid(rank)}/environ").read_bytes().decode().split("\0")
        environ = dict(line.split("=", 1) for line in lines if line)
        assert environ["NCCL_NVLS_ENABLE"] == "0"
        places.append(find(environ))
        assert os.readlink(f"/proc/{ranks.pid(rank)}/fd/0") == os.devnull
        assert os.getsid(ranks.pid(rank)) == ranks.pid(rank)
        assert int(stat(ranks.pid(rank))[1]) == ranks.pid(0)
    assert places == [Place(rank, 3, rank, 3, "gpus") for rank in (1, 2)]


@posix
def test_children_pause_and_go_on_with_the_first_rank(ranks):
    ranks.start_parent("steps", 3, "--silence", 2)
    ranks.began(3)
    ranks.send(0, signal.SIGTSTP)  # Ctrl-Z
    until(lambda: all(stat(ranks.pid(rank))[0] == "T" for rank in range(3)))
    ranks.processes[0].send_signal(signal.SIGCONT)  # fg
    until(lambda: all(stat(ranks.pid(rank))[0] != "T" for rank in range(3)))
    ranks.send(0, signal.SIGTERM)
    assert ranks.end() == [(128 + signal.SIGTERM, "")]


# ---- mpirun -------------------------------------------------------------------------------------------------------

MPIRUN = Path(sys.executable).with_name("mpirun")
mpi = pytest.mark.skipif(not MPIRUN.exists(), reason="needs the extra `mpi`: pip install 'hipgpt[mpi]'")


def mpirun(ranks, size: int, *arguments: object, **changes: str) -> subprocess.CompletedProcess:
    command = [MPIRUN, "-n", size, sys.executable, *arguments]
    environ = {**ranks.environ, **changes}
    return subprocess.run(
        list(map(str, command)), env=environ, capture_output=True, text=True, cwd=ranks.out, timeout=60
    )


@mpi
def test_ranks_of_mpirun_meet_without_any_variable(ranks):
    done = mpirun(ranks, 3, "-m", "tests.distributed.worker", "talk", "--out", ranks.out)
    assert (done.returncode, done.stderr) == (0, "")
    assert [len(result["results"]) for result in ranks.results()] == [4, 4, 4]


@mpi
def test_a_rank_of_mpirun_that_fails_is_named(ranks):
    done = mpirun(ranks, 3, "-m", "tests.distributed.worker", "wrong", "--out", ranks.out, "--rank", 1)
    assert done.returncode  # 2, or 9 if mpirun has killed a rank that was about to end
    assert [line.startswith("Error: rank 1 on ") for line in done.stderr.splitlines()].count(True) == 1


@mpi
def test_mpirun_gives_the_places_of_one_host(ranks):
    script = "import json, os; from gpt.distributed.launch import find; print(json.dumps(find(os.environ)))"
    done = mpirun(ranks, 2, "-c", script)
    assert sorted(map(json.loads, re.findall(r"\[.*?\]", done.stdout))) == [[0, 2, 0, 2, "mpi"], [1, 2, 1, 2, "mpi"]]


def found(ranks, **environ: str) -> str:
    """The error of `find` in a new Python."""
    script = "import os; from gpt.distributed.launch import find; print(find(os.environ))"
    done = subprocess.run(
        [sys.executable, "-c", script], env={**ranks.environ, **environ}, capture_output=True, text=True, timeout=60
    )
    return done.stderr.splitlines()[-1].partition("UserError: ")[2]


def test_without_mpi4py_the_error_says_what_to_install(ranks):
    (ranks.out / "mpi4py.py").write_text("raise ModuleNotFoundError('No module named mpi4py')")
    said = found(ranks, PYTHONPATH=f"{ranks.out}:{ROOT}", PMI_SIZE="2", PMI_RANK="0")
    assert said == "mpirun needs mpi4py, which is not installed: pip install 'hipgpt[mpi]'"


@mpi
def test_an_mpirun_of_another_mpi_is_named(ranks):
    said = found(ranks, OMPI_COMM_WORLD_SIZE="4", OMPI_COMM_WORLD_RANK="2")
    assert said.startswith("mpirun started 4 processes, but mpi4py's MPI counts 1: it is another MPI than mpirun's. ")
