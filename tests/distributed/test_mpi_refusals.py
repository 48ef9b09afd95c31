"""Mistakes in a command that runs on several ranks: one line, whichever ranks they are on, and exit status 2."""

import re
import signal
import socket
import sys

import pytest

from tests.support.mpi import environment

if not sys.platform.startswith("linux"):
    pytest.skip("the tests find the ranks by their environment", allow_module_level=True)

HOST = re.escape(socket.gethostname())
STEPS = ("--batch", 1, "--steps", 2, "--eval-every", 0)
DIFFER = ": start all ranks with the same command, version and files"


def refused(train, *arguments, **kwargs) -> str:
    """The one line that two ranks have printed, without its beginning."""
    end = train(2, "r", *STEPS, *arguments, status=2, **kwargs)
    line = re.fullmatch(f"Error: (rank [01]) on {HOST}: (.*)\n", end.stderr)
    assert line, end
    assert end.noise == ""
    return f"{line[1]}: {line[2]}"


# ---- the command -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--nope",), "rank 0: No such option '--nope'. Did you mean '--no-tie'? (see hipgpt train --help)"),
        (("--steps", "-5"), "rank 0: --steps is -5, but must be at least 1"),
        (
            ("--device", "auto", "--gpus", 2),
            "rank 0: --gpus 2 starts the ranks itself, but 2 were started already: leave it out",
        ),
    ],
)
def test_a_mistake_of_all_ranks_is_said_once(train, arguments, said):
    assert re.sub("^rank 1", "rank 0", refused(train, *arguments)) == said  # of the rank that was faster


@pytest.mark.parametrize("rank", [0, 1])
def test_a_mistake_of_a_single_rank_is_said_and_none_waits_for_it(train, rank):
    said = refused(train, only={rank: ("--nope",)})
    assert said.startswith(f"rank {rank}: No such option '--nope'.")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "0"}, "RANK is '0', but WORLD_SIZE is not set: set both or none"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2, but WORLD_SIZE is 2: RANK must be below it"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but MASTER_ADDR is not set: .*"),
    ],
)
def test_variables_of_a_launcher_that_are_half_set_are_named(hipgpt, variables, said):
    error = hipgpt("train", status=2, environment=environment(**variables)).stderr
    assert re.fullmatch(f"Error: {said}\n", error)


def test_mpirun_without_mpi4py_says_what_to_install(train):
    absent = "import sys\nsys.modules['mpi4py'] = None"
    end = train(2, "r", *STEPS, only=dict.fromkeys(range(2), absent), status=2)
    said = "Error: mpirun needs mpi4py, which is not installed: pip install 'hipgpt[mpi]'"
    assert set(end.stderr.splitlines()) == {said}


# ---- ranks that differ -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("special", "said"),
    [
        (("--seed", 7), "--seed is 7 here, but 0 on the first rank"),
        (("--shard-optimizer",), "--shard-optimizer is True here, but False on the first rank"),
        (("--lr", 0.5), "--lr is 0.5 here, but 0.0003 on the first rank"),
        ("import gpt\ngpt.__version__ = '0.0.1'", "hipgpt's version is 0.0.1 here, but {version} on the first rank"),
    ],
)
def test_a_rank_that_differs_names_the_value(train, special, said):
    from gpt import __version__

    assert refused(train, only={1: special}) == f"rank 1: {said.format(version=__version__)}{DIFFER}"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("--data-path", "other.txt"), r"tokens.bin is not the first rank's \(.*\)"),
        (("--vocab-size", 9), "tokenizer.json is another tokenizer than the first rank's"),
    ],
)
def test_a_rank_with_another_text_or_tokenizer_is_refused(train, hipgpt, tmp_path, change, named):
    """Rank 1 has a directory of its own, in which it has made other tokens."""
    (tmp_path / "other.txt").write_text("the cat sat on a dog and saw the mat .\n" * 61)
    command = ("tokenize", "--run-name", "r", "--data-path", "text.txt", "--vocab-size", 60)
    hipgpt(*command)
    hipgpt(*command, "--runs-dir", "there", *change)
    said = refused(train, only={1: ("--runs-dir", "there", *change)})
    assert re.fullmatch(f"rank 1: there/r/{named}: put --runs-dir on .*", said), said


def test_ranks_that_share_no_directory_cannot_tokenize(train):
    said = refused(train, only={1: ("--runs-dir", "there")})
    assert said.startswith("rank 1: there/r/.tokenizing, which the first rank has made, is not there: put --runs-dir")


def test_a_run_that_is_being_trained_is_not_trained_again(train, hipgpt):
    job = train.start(2, "r", *STEPS, "--steps", 1_000_000, "--log-every", 1)
    job.wait_for("[Step 1]")
    said = refused(train)
    assert said.startswith("rank 0: run r is being written to by another process"), said
    job.send(0, signal.SIGTERM)
    assert job.end().status == 128 + signal.SIGTERM
