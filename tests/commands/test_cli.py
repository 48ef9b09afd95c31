"""The commands other than `train`, run as a user runs them."""

import json
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer as HuggingFaceTokenizer

TEXT = "the cat sat on the mat .\nthe dog sat on the log .\n" * 40
MODEL = ("--dim", 16, "--heads", 2, "--ff", 32, "--layers", 1, "--seq", 16, "--batch", 4, "--vocab-size", 100)


@pytest.fixture
def run(hipgpt):
    """A trained run called `r`, in the current directory of the commands."""
    Path("text.txt").write_text(TEXT)
    hipgpt.once("train", "--data-path", "text.txt", "--steps", 4, "--ckpt-every", 2, *MODEL, name="r")
    return "r"


# ---- tokenize -----------------------------------------------------------------------------------------------------


def test_tokenize_summarizes_its_results(hipgpt):
    Path("text.txt").write_text(TEXT)
    out = hipgpt("tokenize", "--data-path", "text.txt", "--run-name", "t", "--vocab-size", 60).stdout
    info = json.loads(Path("checkpoints/t/tokens.json").read_text())
    ratio = info["characters"] / info["count"]
    assert f"{info['count']:,} tokens for {len(TEXT):,} characters ({ratio:.2f} a token)" in out
    assert "0 characters dropped" in out


def test_a_text_whose_name_is_not_unicode_is_tokenized_like_any_other(hipgpt):
    name = b"text\xff.txt"
    Path(os.fsdecode(name)).write_text(TEXT)
    hipgpt("tokenize", "--data-path", name, "--run-name", "t")
    hipgpt("tokenize", "--run-name", "t")


def test_tokenize_shows_ids_and_pieces_and_the_way_back(hipgpt, run):
    ids, pieces = hipgpt("tokenize", "--run-name", run, "--text", "the cat").stdout.splitlines()
    theirs = HuggingFaceTokenizer.from_file("checkpoints/r/tokenizer.json").encode("the cat")
    assert [int(id) for id in ids.split()] == theirs.ids
    assert pieces.split() == theirs.tokens
    assert hipgpt("tokenize", "--run-name", run, "--decode", ids).stdout == "the cat\n"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--run-name", "none", "--text", "a"), "tokenizer.json does not exist"),
        (("--run-name", "r", "--decode", "1 x"), "--decode is '1 x'"),
        (("--run-name", "r", "--decode", "5000"), "token id 5000"),
        (("--run-name", "r", "--text", b"\xff"), "is not valid text"),
        (("--text", "a"), "need --run-name"),
        (("--run-name", "r", "--text", "a", "--decode", "3"), "no other option"),
        (("--run-name", "r", "--text", "a", "--reset"), "no other option"),
        (("--run-name", "r", "--reset"), "--run-name"),
        (("--run-name", "r", "--vocab-size", 50), "--vocab-size is 50"),
        (("--run-name", "new", "--data-path", "text.txt", "--vocab-size", 1), "--vocab-size is 1"),
        (("--run-name", "new", "--data-path", "text.txt", "--tokenizer", "byte", "--vocab-size", 9), "at least 257"),
        (("--run-name", "r/../../x"), "--run-name"),
        (("--run-name", ""), "--run-name"),
    ],
)
def test_tokenize_refuses_in_one_line(hipgpt, run, flags, complaint):
    assert complaint in hipgpt("tokenize", *flags, status=2).stderr
    assert not Path("checkpoints/new").exists()


# ---- generate -----------------------------------------------------------------------------------------------------


def test_generate_continues_the_prompt_and_repeats_itself_for_a_seed(hipgpt, run):
    texts = [
        hipgpt("generate", "--run-name", run, "--prompt", "the cat", "--num-tokens", 12, "--seed", seed).stdout
        for seed in (1, 1, 2)
    ]
    assert texts[0].startswith("the cat ")
    assert texts[0] == texts[1] != texts[2]


def test_generate_reads_a_prompt_from_standard_input_without_its_last_newline(hipgpt, run):
    flags = ("generate", "--run-name", run, "--temp", 0, "--num-tokens", 5)
    assert hipgpt(*flags, "--prompt", "-", input="the cat\n").stdout == hipgpt(*flags, "--prompt", "the cat").stdout


def test_temperature_zero_is_plain_argmax_unless_a_penalty_is_asked_for(hipgpt, run):
    flags = ("generate", "--run-name", run, "--prompt", "the cat", "--num-tokens", 8, "--temp", 0)
    greedy = hipgpt(*flags).stdout
    assert greedy == hipgpt(*flags, "--rep-penalty", 1).stdout
    assert greedy != hipgpt(*flags, "--rep-penalty", 100).stdout


def test_a_prompt_on_standard_input_that_is_not_text_is_refused(hipgpt, run):
    environment = {**hipgpt.environment, "PYTHONIOENCODING": "utf-8:strict"}
    command = [sys.executable, "-m", "gpt.cli", "generate", "--run-name", run, "--prompt", "-"]
    result = subprocess.run(command, input=b"the \xff", capture_output=True, env=environment, check=False)
    assert result.returncode == 2
    assert result.stderr.count(b"\n") == 1
    assert b"is not valid text" in result.stderr


def test_generate_takes_an_earlier_step_and_hipgpts_own_spellings(hipgpt, run):
    hipgpt(
        "generate", "--run-name", run, "--prompt", "the", "--step", 2, "--num_tokens", 3, "--top_k", 5, "--top_p", 0.5,
        "--rep-penalty", 1.2, "--eos_id", 0, "--max_seq_len", 8,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--run-name", "none"), "there is no run checkpoints/none"),
        (("--step", 3), "has no checkpoint of step 3: there are steps 2, 4"),
        (("--temp", -1), "--temp is -1.0"),
        (("--num-tokens", 0), "--num-tokens is 0"),
        (("--max-seq-len", 17), "--max-seq-len is 17"),
        (("--prompt", "ЖЖ"), "--prompt 'ЖЖ' has no token"),
        (("--prompt", ""), "--prompt '' has no token"),
        (("--device", "gpu:99"), "--device gpu"),
    ],
)
def test_generate_refuses_in_one_line(hipgpt, run, flags, complaint):
    assert complaint in hipgpt("generate", "--run-name", run, "--prompt", "the", *flags, status=2).stderr


@pytest.mark.parametrize("file", ["r_step4.safetensors", "latest_config.json", "tokenizer.json"])
def test_a_corrupt_file_is_named_in_one_line(hipgpt, run, file):
    path = Path("checkpoints/r") / file
    path.write_bytes(path.read_bytes()[:40])
    named = "r_step4_config.json" if file == "latest_config.json" else file
    error = hipgpt("generate", "--run-name", run, "--prompt", "the", status=2).stderr
    assert file in error or named in error


# ---- export, runs -------------------------------------------------------------------------------------------------


def test_export_lists_the_files_it_wrote(hipgpt, run):
    out = hipgpt("export", "--run-name", run, "--out", "hf").stdout
    assert sorted(out.split()) == sorted(str(path) for path in Path("hf").iterdir())
    assert "exists already" in hipgpt("export", "--run-name", run, "--out", "hf", status=2).stderr


def test_runs_lists_step_loss_parameters_and_size(hipgpt, run):
    hipgpt("tokenize", "--data-path", "text.txt", "--run-name", "only_tokens")
    Path("checkpoints/not_a_run").mkdir()
    header, tokens_only, trained = hipgpt("runs").stdout.splitlines()
    assert re.split("  +", header)[:4] == ["RUN", "STATE", "STEP", "LOSS"]
    assert tokens_only.split()[:9] == ["only_tokens", "tokenized", *"-------"]
    assert trained.split()[:3] == ["r", "done", "4/4"]
    loss = json.loads(Path("checkpoints/r/metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert trained.split()[3] == f"{loss:.4f}"
    names = [each["name"] for each in json.loads(hipgpt("runs", "--json").stdout)]
    assert names == ["only_tokens", "r"]


def test_show_tells_the_state_of_a_run_in_words_and_as_json(hipgpt, run):
    assert "State:       done, at step 4 of 4\n" in hipgpt("show", run).stdout
    assert json.loads(hipgpt("show", run, "--json").stdout)["state"] == "done"
    assert "there is no run" in hipgpt("show", "none", status=2).stderr


def test_plot_draws_in_the_terminal_or_into_a_picture_of_a_known_kind(hipgpt, run):
    assert "Loss (nats per token)" in hipgpt("plot", run).stdout
    assert "must end in" in hipgpt("plot", run, "--out", "a.gif", status=2).stderr


@pytest.mark.parametrize("command", ["show", "plot"])
def test_a_wrong_name_of_a_run_is_not_said_of_an_option_that_the_command_lacks(hipgpt, command):
    refused = hipgpt(command, "checkpoints/r", status=2).stderr
    assert refused.startswith("Error: RUN is 'checkpoints/r', but must consist of ")
    assert refused.endswith(": give r with --runs-dir checkpoints\n")


def test_the_log_is_what_hipgpts_own_plotting_reads(hipgpt):
    """scripts/plot_training.py of HipGPT, the C++ program, searches each line of a log for this."""
    Path("text.txt").write_text(TEXT)
    out = hipgpt(
        "train", "--data-path", "text.txt", "--run-name", "r", "--steps", 4, "--log-every", 1, "--eval-every", 2, *MODEL
    ).stdout
    number = r"([\d.]+)"
    wanted = re.compile(rf"\[Step (\d+)\] Loss: {number} \| Perplexity: {number} \| Accuracy: {number}%")
    read = [match.groups() for line in out.splitlines() if (match := wanted.search(line))]
    lines = map(json.loads, Path("checkpoints/r/metrics.jsonl").read_text().splitlines())
    lines = [line for line in lines if "loss" in line]
    assert [(int(step), float(loss)) for step, loss, *_ in read] == [(e["step"], round(e["loss"], 4)) for e in lines]
    assert len(read) == 4


@pytest.mark.parametrize("damage", [b"\xff\n", b"[]\n", b'{"loss": 1}\n', b'{"step": 4, "lo'])
def test_damaged_metrics_do_not_hide_a_run(hipgpt, run, damage):
    with open("checkpoints/r/metrics.jsonl", "ab") as file:
        file.write(damage)
    assert "4/4" in hipgpt("runs").stdout


def test_runs_says_so_when_there_are_none(hipgpt):
    assert "No runs" in hipgpt("runs").stdout


# ---- what holds for every command ---------------------------------------------------------------------------------


def test_without_a_command_the_help_is_shown(hipgpt):
    assert hipgpt().stdout == hipgpt("--help").stdout


@pytest.mark.parametrize("command", [("--nonsense",), ("nonsense",), ("train", "--steps"), ("fetch", "bible")])
def test_a_wrong_command_line_is_one_line_too(hipgpt, command):
    hipgpt(*command, status=2)


def test_output_that_the_terminal_cannot_show_does_not_end_the_command(hipgpt, run):
    environment = {**hipgpt.environment, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "1"}
    flags = ("generate", "--run-name", run, "--prompt", "the Ж cat", "--num-tokens", 2)
    assert hipgpt(*flags, environment=environment).stdout.startswith("the \\u0416 cat")


def test_a_prompt_in_another_encoding_is_refused_in_one_line(hipgpt, run):
    environment = {**hipgpt.environment, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    flags = ("generate", "--run-name", run, "--prompt", "the Ж cat")
    assert "is not valid text" in hipgpt(*flags, environment=environment, status=2).stderr


def test_a_reader_that_leaves_is_not_an_error(hipgpt, run):
    command = f"{sys.executable} -m gpt.cli runs | true"
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, env=hipgpt.environment, check=False
    )
    assert "Traceback" not in result.stderr
    assert "Error" not in result.stderr


# ---- lost characters, large vocabularies, other places, closed streams ---------------------------------------------


def test_characters_that_the_model_does_not_know_are_said_on_standard_error(hipgpt, run):
    result = hipgpt("generate", "--run-name", run, "--prompt", "the ЖЖé cat", "--num-tokens", 3)
    note = "Note: --prompt loses 3 of its 11 characters, which the vocabulary lacks: 'Ж' (2), 'é' (1)\n"
    assert result.stderr == note
    assert result.stdout.startswith("the ЖЖé cat")
    result = hipgpt("tokenize", "--run-name", run, "--text", "the Ж<|endoftext|> cat\u3000")
    assert result.stderr == "Note: --text loses 1 of its 23 characters, which the vocabulary lacks: 'Ж' (1)\n"
    assert hipgpt("generate", "--run-name", run, "--prompt", "the cat", "--num-tokens", 3).stderr == ""


def test_tokenize_reads_its_text_from_standard_input_too(hipgpt, run):
    given = hipgpt("tokenize", "--run-name", run, "--text", "the cat").stdout
    assert hipgpt("tokenize", "--run-name", run, "--text", "-", input="the cat\n").stdout == given


def test_going_on_with_a_text_that_the_vocabulary_lacks_says_so_or_is_refused(hipgpt, run):
    Path("other.txt").write_text("the cat sat on the mat . ЖЖЖ \n" * 200, encoding="utf-8")
    start = ("train", "--ckpt", "checkpoints/r/latest_checkpoint.safetensors", "--data-path", "other.txt", "--steps", 2)
    assert "other.txt loses 600 of its 6,000 characters" in hipgpt(*start, "--run-name", "more").stdout
    Path("other.txt").write_text("the ЖЗИЙ ЖЗИЙК\n" * 400, encoding="utf-8")
    error = hipgpt(*start, "--run-name", "yet", status=2).stderr
    assert "3,600 of the 6,000 characters of other.txt are not in the vocabulary" in error
    assert not Path("checkpoints/yet").exists()


def test_standard_input_is_a_text_if_it_is_a_file_and_is_remembered_by_its_name(hipgpt, run):
    with open("text.txt") as file:
        hipgpt("tokenize", "--run-name", "s", "--data-path", "/dev/stdin", stdin=file)
    assert json.loads(Path("checkpoints/s/tokens.json").read_text())["text"]["path"] == "../../text.txt"
    error = hipgpt("tokenize", "--run-name", "p", "--data-path", "/dev/stdin", input="a b", status=2).stderr
    assert "is a pipe, but a text is read more than once: write it to a file" in error
    assert not Path("checkpoints/p").exists()


@pytest.mark.parametrize("size", [2**31, 99_999_999_999, 10**40])
def test_a_vocabulary_beyond_all_ids_is_refused(hipgpt, run, size):
    error = hipgpt("tokenize", "--run-name", "v", "--data-path", "text.txt", "--vocab-size", size, status=2).stderr
    assert f"--vocab-size is {size}, but must be below 2147483648" in error


@pytest.mark.parametrize("kind", ["word", "byte"])
def test_the_largest_vocabulary_costs_no_memory_and_merges_as_any_other(hipgpt, kind):
    rng = random.Random(5)
    words = ["".join(rng.choices("abcdefg", k=rng.randrange(1, 9))) for _ in range(300)]
    Path("text.txt").write_text(" ".join(rng.choices(words, k=3000)))
    limited = "import resource as r; r.setrlimit(r.RLIMIT_DATA, (2**30,) * 2); from gpt.cli import main; main()"
    command = ["tokenize", "--data-path", "text.txt", "--tokenizer", kind, "--run-name"]
    for name, size in (("a", 100_000), ("b", 2**31 - 1)):
        subprocess.run([sys.executable, "-c", limited, *command, name, "--vocab-size", str(size)], check=True,
                       env={**hipgpt.environment, "OMP_NUM_THREADS": "1"}, capture_output=True)  # fmt: skip
    assert Path("checkpoints/a/tokens.bin").read_bytes() == Path("checkpoints/b/tokens.bin").read_bytes()


@pytest.mark.parametrize("by", ["option", "variable"])
def test_every_command_finds_the_runs_that_are_kept_elsewhere(hipgpt, tmp_path, by):
    place = tmp_path / "some where" / "runs"
    given = ("--runs-dir", place) if by == "option" else ()
    if by == "variable":
        hipgpt.environment["HIPGPT_RUNS_DIR"] = str(place)
    (tmp_path / "text.txt").write_text("a small text to learn from, over and over again. " * 40)
    size = ("--dim", 16, "--heads", 2, "--ff", 32, "--layers", 1, "--seq", 8, "--batch", 2, "--vocab-size", 60)

    def run(*arguments):
        return hipgpt(*arguments, *given).stdout

    named = ("--run-name", "r")
    out = run("train", *named, "--data-path", "text.txt", *size, "--steps", 2, "--device", "cpu")
    assert f"Run:    {place}/r" in out
    assert ("--runs-dir" in out) == (by == "option")
    advised = out.split("Try it: hipgpt ")[1].replace('"…"', "a")
    assert hipgpt(*shlex.split(advised)).stdout.startswith("a")
    run("train", *named, "--resume", "--steps", 3)
    assert run("tokenize", *named, "--text", "small text")
    assert run("export", *named, "--out", "hf")
    assert "r " in run("runs")
    assert not Path("checkpoints").exists()
    hipgpt.environment.pop("HIPGPT_RUNS_DIR", None)
    assert "No runs in checkpoints/" in hipgpt("runs").stdout


@pytest.mark.parametrize(
    ("stream", "command"),
    [
        (1, ["train", "--run-name", "r", "--resume", "--steps", 5]),
        (2, ["train", "--run-name", "r", "--resume", "--steps", 5]),
        (0, ["train", "--run-name", "r", "--resume", "--steps", 5]),
        (1, ["generate", "--run-name", "r", "--prompt", "the", "--num-tokens", 2]),
        (1, ["tokenize", "--run-name", "s", "--data-path", "text.txt"]),
        (1, ["export", "--run-name", "r", "--out", "hf"]),
        (1, ["runs"]),
    ],
)  # fmt: skip
def test_closing_a_standard_stream_costs_only_its_output(hipgpt, run, stream, command):
    tokens = Path("checkpoints/r/tokens.bin").read_bytes()
    result = hipgpt(*command, preexec_fn=lambda: os.close(stream))
    assert result.stderr == ""
    assert (result.stdout == "") == (stream == 1)
    assert Path("checkpoints/r/tokens.bin").read_bytes() == tokens
    if command[0] == "train":
        assert Path("checkpoints/r/r_step5.safetensors").exists()


def test_a_prompt_from_a_closed_standard_input_is_empty(hipgpt, run):
    command = ("generate", "--run-name", run, "--prompt", "-")
    assert "--prompt '' has no token" in hipgpt(*command, status=2, preexec_fn=lambda: os.close(0)).stderr
