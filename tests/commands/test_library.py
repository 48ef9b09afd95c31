"""gpt as a library: the examples of its page and of the notebook, its options, and Ctrl-C."""

import doctest
import inspect
import json
import re
import signal
import weakref
from pathlib import Path

import numpy as np
import pytest

import gpt
from gpt import generate, library
from gpt.cli import main
from gpt.commands.command_line import Setting
from gpt.config import DataConfig, ModelConfig, TokenizerConfig, TrainConfig, flag
from gpt.run import Run
from gpt.system.console import Console
from gpt.trainer import loop, step
from tests.support import ROOT

PAGE = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
NOTEBOOK = json.loads((ROOT / "docs" / "library.ipynb").read_text(encoding="utf-8"))
SMALL = {"tokenizer": "byte", "vocab_size": 300, "dim": 16, "heads": 2, "ff": 32, "layers": 1, "seq": 16, "batch": 2}
FEWER = {"steps=400": "steps=4", "step 400": "step 4", "410": "6"}  # in the examples


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run that gpt.train has made."""
    root = tmp_path_factory.mktemp("library")
    (root / "my.txt").write_text("On a bright morning the cat sat on the mat.\nThe river ran.\n" * 60)
    gpt.train(
        root / "my.txt", "r", runs_dir=root, device="cpu", steps=4, eval_every=2, ckpt_every=2, quiet=True, **SMALL
    )
    return root / "r"


def options(command: str) -> set[str]:
    """The options of a command, named as here."""
    return {each.opts[0][2:].replace("-", "_") for each in main.commands[command].params}


def with_fewer_steps(text: str) -> str:
    for long, short in FEWER.items():
        text = text.replace(long, short)
    return text


def test_the_examples_of_the_page_work(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HIPGPT_RUNS_DIR", "checkpoints")
    Path("my.txt").write_bytes((run.parent / "my.txt").read_bytes())
    examples = "\n".join(re.findall(r"^```pycon\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
    test = doctest.DocTestParser().get_doctest(with_fewer_steps(examples), {}, "library.md", None, 0)
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test) == (0, len(test.examples))
    assert len(test.examples) > 15


def test_the_cells_of_the_notebook_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my.txt").write_text("On a bright morning the cat sat on the mat.\n" * 100)
    cells = [each["source"] for each in NOTEBOOK["cells"] if each["cell_type"] == "code"]
    code = with_fewer_steps("\n".join(cells)).replace('run_name="notebook"', '"my.txt", run_name="notebook"')
    exec(compile(code, "library.ipynb", "exec"), {})
    assert capsys.readouterr().out.count("On a bright morning") >= 4  # and the samples of the training
    assert not any(cell.get("outputs") for cell in NOTEBOOK["cells"]), "clear the outputs before it is committed"


def test_the_names_are_found_by_completion_and_others_are_refused():
    assert set(gpt.__all__) <= set(dir(gpt))
    assert all(getattr(gpt, name).__doc__ for name in gpt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = gpt.lode


def test_every_setting_of_the_command_is_an_option_of_train_and_no_other():
    settings = {
        flag(each.name)[2:].replace("-", "_") for each in main.commands["train"].params if type(each) is Setting
    }
    assert settings == set(library._names(DataConfig, TokenizerConfig, ModelConfig, TrainConfig))
    named = inspect.signature(gpt.train).parameters.keys() - {"settings", "quiet", "source"}
    assert named - options("train") == set()


def test_the_options_of_a_text_are_those_of_generate():
    assert set(gpt.library.Writing.__annotations__) - options("generate") == set()


def test_a_model_is_that_of_the_last_step_of_another_or_of_a_file(run):
    last = gpt.load(run, device="cpu")
    assert (last.checkpoint.step, gpt.load(run, step=2, device="cpu").checkpoint.step) == (4, 2)
    assert gpt.load(run, best=True, device="cpu").checkpoint.val_loss is not None
    assert gpt.load(run / "r_step2.safetensors", device="cpu").checkpoint.step == 2
    with pytest.raises(gpt.UserError, match=r"is the file of one checkpoint: leave step and best out"):
        gpt.load(run / "r_step2.safetensors", best=True)
    assert repr(last) == f"<gpt.LanguageModel {run}, step 4, {last.model.ops.description}>"


def test_a_text_is_the_one_that_the_command_writes(run, hipgpt):
    model = gpt.load(run, device="cpu")
    text = model.generate("the cat", num_tokens=12, temp=0.9, seed=3)
    flags = ("--prompt", "the cat", "--num-tokens", 12, "--temp", 0.9, "--seed", 3)
    said = hipgpt("generate", "--run-name", "r", "--runs-dir", run.parent, *flags, "--device", "cpu").stdout
    assert said == f"the cat{text}\n"
    assert model.generate_many(["the cat"], num_samples=2, num_tokens=12, temp=0.9, seed=3)[0][0] == text
    assert model.generate("the cat", num_tokens=12, temp=0.9, seed=3, stop=text[3:5]) == text[: text.find(text[3:5])]


def test_logits_are_those_of_the_model_for_each_token(run):
    model = gpt.load(run, device="cpu")
    ids = model.tokenizer.encode("the cat")
    assert np.array_equal(model.logits("the cat"), model.model.logits(np.array([ids], np.int32))[0])
    with pytest.raises(gpt.UserError, match="looks back on 16 at most"):
        model.logits("the cat sat " * 20)


def test_a_path_begins_at_home_after_a_tilde(run, monkeypatch):
    monkeypatch.setenv("HOME", str(run.parent))
    monkeypatch.setenv("USERPROFILE", str(run.parent))
    assert gpt.load("~/r").checkpoint.run.path == run
    found = library._settings({"data_path": "~/my.txt", "tokens": Path("~/a.bin"), "special_token": "~"})
    home = str(run.parent)
    assert found == {"data_path": (f"{home}/my.txt",), "tokens": (f"{home}/a.bin",), "special_tokens": ("~",)}


@pytest.mark.parametrize(
    ("call", "error", "complaint"),
    [
        (lambda root: gpt.train(root / "my.txt", stepz=4), TypeError, "no option stepz: did you mean steps"),
        (lambda root: gpt.train(root / "my.txt", dim=3.5), gpt.UserError, "--dim is 3.5, but must be of type int"),
        (lambda root: gpt.train(root / "my.txt", resume=True), gpt.UserError, "--resume needs --run-name"),
        (lambda root: gpt.load(root / "r").generate("the", heat=1), TypeError, "no option heat"),
        (lambda root: gpt.train("", **SMALL), gpt.UserError, "data_path is empty, but must be a path"),
        (lambda root: gpt.train(ckpt="", steps=1), gpt.UserError, "ckpt is empty, but must be a path"),
        (lambda root: gpt.train(source=root / "none"), gpt.UserError, "none is neither a run"),
        (
            lambda root: gpt.train(root / "my.txt", preset="big"),
            gpt.UserError,
            "--preset is big, but must be one of tiny,",
        ),
        (
            lambda root: gpt.train(root / "my.txt", no_tie="n"),
            gpt.UserError,
            "no_tie is 'n', but must be True or False",
        ),
        (lambda root: gpt.load(root / "r").generate_many("the"), TypeError, "prompts is one text, but must be a list"),
        (lambda root: gpt.load(root / "nobody"), gpt.UserError, "there is no run"),
    ],
)
def test_mistakes_are_exceptions(run, call, error, complaint):
    with pytest.raises(error, match=complaint):
        call(run.parent)


def test_one_of_several_ranks_is_sent_to_the_command(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(gpt.UserError, match="start them with hipgpt train"):
        gpt.train("my.txt")


def test_ctrl_c_saves_the_step_and_raises_and_the_run_goes_on_from_there(run, tmp_path, monkeypatch):
    print_line = Console.line

    def interrupt(self, text):
        print_line(self, text)
        if text.startswith("[Step 3]"):
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Console, "line", interrupt)
        with pytest.raises(KeyboardInterrupt):
            gpt.train(run.parent / "my.txt", "s", runs_dir=tmp_path, device="cpu", steps=9, log_every=1, **SMALL)
    assert Run("s", tmp_path).steps() == [3]
    assert signal.getsignal(signal.SIGINT) is before
    resumed = gpt.train(run_name="s", runs_dir=tmp_path, device="cpu", resume=True, quiet=True)
    assert resumed.checkpoint.step == 9


def test_the_memory_of_a_training_is_free_before_its_model_is_loaded(run, tmp_path, monkeypatch):
    trained, alive = [], []

    class Watched(step.TrainStep):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            trained.append(weakref.ref(self.model))

    def load_model(*arguments):
        alive.extend(model() for model in trained)
        return generate.load_model(*arguments)

    monkeypatch.setattr(loop, "TrainStep", Watched)
    monkeypatch.setattr(library, "load_model", load_model)
    gpt.train(run.parent / "my.txt", "r", runs_dir=tmp_path, device="cpu", steps=1, quiet=True, **SMALL)
    assert alive == [None]


def test_a_second_ctrl_c_raises_at_once(run, tmp_path, monkeypatch):
    def interrupt(self, text):
        if text.startswith("[Step 3]"):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Console, "line", interrupt)
    with pytest.raises(KeyboardInterrupt):
        gpt.train(run.parent / "my.txt", "s", runs_dir=tmp_path, device="cpu", steps=9, log_every=1, **SMALL)
    assert Run("s", tmp_path).steps() == []
