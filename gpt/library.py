"""hipgpt as a library: `gpt.load` and `gpt.train` return a `LanguageModel`, which writes texts.

The names of options are those of the command, with "_" for "-". A mistake raises `UserError`, whose message is the line
that the command would print.
"""

import gc
import os
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

import numpy as np

from gpt import checkpoint
from gpt.checkpoint import Checkpoint
from gpt.config import NOT_CHOSEN, DataConfig, ModelConfig, SamplingConfig, TokenizerConfig, TrainConfig, flag, types_of
from gpt.distributed.launch import find
from gpt.errors import UserError
from gpt.generate import MOST_PLACES, fitting, generate, generate_many, load_model, prompt_ids
from gpt.ops import select
from gpt.run import Run, default_root
from gpt.system.console import Console
from gpt.system.interrupts import borrowed
from gpt.system.typed_path import typed_path
from gpt.tokenizer import Tokenizer
from gpt.training import Asked, carry_out

if TYPE_CHECKING:
    from typing_extensions import Unpack

Paths: TypeAlias = str | PathLike[str] | Sequence[str | PathLike[str]]

TEXTS = ("data_path", "val_path", "tokens", "val_tokens")  # options that name one file or several


class Writing(TypedDict, total=False):
    """The options with which a text is written, those of `hipgpt generate`; all of them may be left out.

    `num_tokens` (100) is the most that are added, and `stop` a text, or several, before which the text ends. `temp`
    (0.8), `top_k` (50), `top_p` (0.9) and `rep_penalty` (1.1) are those of `SamplingConfig`. The same `seed` (0) writes
    the same text. A text ends before the token `eos_id` (none), and looks back on `max_seq_len` tokens (the model's).
    """

    num_tokens: int
    stop: str | Sequence[str]
    temp: float
    top_k: int
    top_p: float
    rep_penalty: float
    seed: int
    eos_id: int
    max_seq_len: int


class LanguageModel:
    """A trained model and its tokenizer, ready to write. `gpt.load` and `gpt.train` make one.

    `model` is the GPT itself, which computes logits. `tokenizer` translates between texts and ids. `checkpoint` is the
    checkpoint that the model was read from. Threads may share this object, but only one may use it at a time.

    Example:
        first = gpt.load("checkpoints/first")
        print(first.generate("On a bright morning", num_tokens=50, temp=0.7))
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "auto", precision: str = "auto") -> None:
        _free_circles()
        ops = select(device, precision)
        self.checkpoint, self.tokenizer = checkpoint, Tokenizer.load(checkpoint.run.tokenizer_path)
        self._places = fitting(checkpoint.model_config, ops, MOST_PLACES)
        self.model = load_model(checkpoint, ops, self._places)

    def __repr__(self) -> str:
        return (
            f"<gpt.LanguageModel {self.checkpoint.run.path}, step {self.checkpoint.step}, {self.model.ops.description}>"
        )

    def generate(self, prompt: str, **options: "Unpack[Writing]") -> str:
        """The text with which the model continues the prompt, without the prompt."""
        return "".join(self.stream(prompt, **options))

    def stream(self, prompt: str, **options: "Unpack[Writing]") -> Iterator[str]:
        """The same text in pieces, each as soon as it is certain.

        Example:
            for piece in first.stream("On a bright morning"):
                print(piece, end="", flush=True)
        """
        return generate(self.model, self.tokenizer, prompt, **_arguments(options))

    def generate_many(
        self, prompts: Sequence[str], num_samples: int = 1, **options: "Unpack[Writing]"
    ) -> list[list[str]]:
        """`num_samples` continuations of each prompt, many at once: a list for each prompt.

        A text depends on the seed and on the numbers of its prompt and its sample, not on how many others there are.
        The first one of the first prompt is that of `generate`.
        """
        if isinstance(prompts, str):  # a sequence of texts, too: its characters
            raise TypeError("prompts is one text, but must be a list of texts: for one there is generate")
        named = [(f"prompt {number}:", prompt) for number, prompt in enumerate(prompts, start=1)]
        texts = generate_many(
            self.model, self.tokenizer, named, num_samples=num_samples, places=self._places, **_arguments(options)
        )
        written: list[list[str]] = [[] for _ in prompts]
        for text in texts:
            written[text.prompt].append(text.continuation)
        return written

    def logits(self, text: str) -> np.ndarray:
        """The logits of each token of a text for the token that follows it, float32 [tokens, vocab].

        Raises UserError if the model knows no token of the text, or if there are more than it can look back on.
        """
        ids, most = prompt_ids(self.tokenizer, text, "the text"), self.model.config.max_seq_len
        if len(ids) > most:
            raise UserError(f"the text has {len(ids)} tokens, but the model looks back on {most} at most: cut it")
        logits: np.ndarray = self.model.logits(self.model.ops.from_host(np.array([ids], np.int32)))[0]
        return logits


def load(
    path: str | PathLike[str], *, step: int | None = None, best: bool = False, device: str = "auto",
    precision: str = TrainConfig.precision,
) -> LanguageModel:  # fmt: skip
    """The model of a run's directory, such as "checkpoints/first", or of a checkpoint's file.

    A run's model is that of its latest step, or of another `step`, or the one with the lowest validation loss (`best`).
    `device` and `precision` are as on the command line. Raises UserError if there is no such model, if its files are
    damaged, if the memory is not there, and if the device does not exist or lacks the precision.
    """
    path = Path(typed_path(path, "path"))
    if path.is_file():
        if step is not None or best:
            raise UserError(f"{path} is the file of one checkpoint: leave step and best out, or name its directory")
        return LanguageModel(checkpoint.find(path), device, precision)
    return LanguageModel(checkpoint.load(Run.at(path), step, best), device, precision)


def train(
    data_path: Paths = (), run_name: str | None = None, *,
    runs_dir: str | PathLike[str] | None = None, preset: str | None = None, device: str = "auto", blas: str = "auto",
    resume: bool = False, ckpt: str | PathLike[str] | None = None, source: str | PathLike[str] | None = None,
    reset: bool = False, quiet: bool = False, track: str | None = None, **settings: Any,
) -> LanguageModel:  # fmt: skip
    """Train as `hipgpt train` does, and return the model of the last step, which is on disk.

    The options are those of the command, which `hipgpt train --help` describes, with "_" for "-"; `source` is --from.
    So are the `settings`, such as steps=400, dim=128 and lr=1e-3. With `quiet`, nothing is printed. It trains on one
    device; for several there is the command.

    The first Ctrl-C finishes the step, saves a checkpoint and raises KeyboardInterrupt, the second raises it at once.
    Then `resume=True` goes on from the last checkpoint, exactly.

    Raises UserError for whatever the user can correct, and TypeError for an option that does not exist.

    Example:
        mine = gpt.train("my.txt", run_name="mine", preset="small", steps=4000)
        mine = gpt.train(run_name="mine", steps=6000, resume=True)
    """
    if find(os.environ):
        raise UserError("gpt.train is one process, but this is one of several ranks: start them with hipgpt train")
    asked = Asked(
        run_name=run_name, runs_dir=Path(typed_path(runs_dir or default_root(), "runs_dir")), preset=preset,
        device=device, blas=blas, resume=resume,
        ckpt=None if ckpt is None else typed_path(ckpt, "ckpt"),
        source=None if source is None else typed_path(source, "source"),
        reset=reset, track=track, settings=_settings({"data_path": data_path, **settings}),
    )  # fmt: skip
    _free_circles()
    with borrowed():
        ended = carry_out(asked, Console(silent=quiet))
    if ended.stopped_by is not None:
        raise KeyboardInterrupt
    return load(ended.run.path, device=device)


def _free_circles() -> None:
    """Free the objects of earlier calls that refer to each other in circles: a training with all of its arrays.

    Python does so only now and then, and the next call may need that memory.
    """
    gc.collect()


def _names(*configs: type) -> dict[str, str]:
    """The names that the fields of these configs have here: {"steps": "total_steps", …}."""
    fields = [key for config in configs for key in types_of(config) if key not in NOT_CHOSEN]
    return {flag(key)[2:].replace("-", "_"): key for key in fields}


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """Options by the names of their fields. Raises TypeError for one that does not exist."""
    names, settings = _names(DataConfig, TokenizerConfig, ModelConfig, TrainConfig), {}
    for name, value in options.items():
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else "hipgpt train --help has them all"
            raise TypeError(f"gpt.train has no option {name}: {hint}")
        if name.startswith("no_"):
            if not isinstance(value, bool):
                raise UserError(f"{name} is {value!r}, but must be True or False")
            value = not value
        elif name in TEXTS:
            value = tuple(typed_path(path, name) for path in ([value] if isinstance(value, str | PathLike) else value))
        elif name == "special_token":
            value = (value,) if isinstance(value, str) else tuple(value)
        elif name == "tokenizer":
            value = typed_path(value, name)
        settings[names[name]] = value
    return settings


def _arguments(options: Writing) -> dict[str, Any]:
    """The options as keyword arguments of `gpt.generate`. Raises TypeError for an unknown one, as Python would."""
    given: dict[str, Any] = dict(options)
    if unknown := given.keys() - Writing.__annotations__.keys():
        raise TypeError(f"there is no option {min(unknown)}: the options are {', '.join(Writing.__annotations__)}")
    sampling = SamplingConfig(**{key: given.pop(name) for name, key in _names(SamplingConfig).items() if name in given})
    stop = given.pop("stop", ())
    return {**given, "sampling": sampling, "stops": (stop,) if isinstance(stop, str) else stop}
