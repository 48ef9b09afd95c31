"""The messages between the two processes of the server.

front → engine    Load, Write, Cancel
engine → front    Begin, Loaded, Refused, Forgotten, Ending, Done, and a list of Updates
"""

from typing import Literal, NamedTuple

from gpt.config import ModelConfig
from gpt.decoder import Request
from gpt.run import Run
from gpt.serve.errors import RequestError
from gpt.tokenizer import Tokenizer


class Score(NamedTuple):
    """The log probability of a token, and the likeliest tokens of its position with theirs, the likeliest first.

    They are the model's own, before temperature, penalty, top_k and top_p. The first token of a prompt has none.
    """

    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


class End(NamedTuple):
    """The end of a text: the model has ended it, its number of tokens is reached, or an error came."""

    reason: Literal["stop", "length"] = "stop"
    error: RequestError | None = None


class Update(NamedTuple):
    """The next tokens of text `number`, each with its score if scores were asked for, and the text's end."""

    number: int
    ids: list[int]
    scores: list[Score]
    end: End | None = None


class Text(NamedTuple):
    """A text to be written, by the front's own number.

    `likeliest` is the number of likely tokens to tell with each token; None means no scores at all. With
    `scores_prompt` the prompt's tokens come first, with theirs; `request.num_tokens` may then be 0.
    """

    number: int
    request: Request
    likeliest: int | None = None
    scores_prompt: bool = False


class ModelInfo(NamedTuple):
    """A model in memory, as the front knows it. Another model gets another `number`, also if it is the same run's."""

    number: int
    run: Run
    step_number: int
    config: ModelConfig
    tokenizer: Tokenizer


# ---- to the engine -------------------------------------------------------------------------------------------------


class Load(NamedTuple):
    """Somebody asks for the model of a run. The answer is Loaded or Refused."""

    run: Run


class Write(NamedTuple):
    """Texts for a model, by its number."""

    model: int
    texts: list[Text]


class Cancel(NamedTuple):
    """Nobody wants these texts of a model any more. They get no more updates."""

    model: int
    numbers: list[int]


# ---- to the front --------------------------------------------------------------------------------------------------


class Begin(NamedTuple):
    """Requests may be answered. `device` is what the device is called."""

    device: str


class Loaded(NamedTuple):
    """A model is in memory, or has the weights of a newer checkpoint."""

    model: ModelInfo


class Refused(NamedTuple):
    """The run of this name has no model that can be loaded."""

    name: str
    error: RequestError


class Forgotten(NamedTuple):
    """The model of the run of this name is not in memory any more."""

    name: str


class Ending(NamedTuple):
    """No more texts are taken. Those that have a place may still be completed."""


class Done(NamedTuple):
    """The engine has ended. What is not complete ends with this error."""

    error: RequestError
