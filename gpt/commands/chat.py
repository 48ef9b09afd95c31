"""`hipgpt chat`: a conversation with a model that was trained on conversations (gpt/chat_template.py)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpt.commands.command_line import Option, command
from gpt.commands.interactive import Commands, Pieces, Session, Settings
from gpt.commands.models import loaded, model_options
from gpt.commands.options import SAMPLING, WRITING
from gpt.commands.texts import note_unknown
from gpt.config import NO_EOS, SamplingConfig, TrainConfig
from gpt.errors import UserError

if TYPE_CHECKING:
    from gpt.chat_template import Message
    from gpt.model import GPT
    from gpt.tokenizer import Tokenizer


@command(
    "chat",
    sections={
        "Model": model_options("Run whose model to talk with."),
        "Text": (
            Option("--system", metavar="TEXT", default_text="none",
                   help="Message of the system with which the conversation begins."),
            *WRITING,
        ),
        "Sampling": SAMPLING,
    },
    epilog="hipgpt chat --run-name mine --temp 0.5",
)  # fmt: skip
def chat_with_model(
    run_name: str, runs_dir: Path, step: int | None, best: bool, device: str, blas: str, system: str | None,
    num_tokens: int, stops: tuple[str, ...], seed: int, settings: dict[str, Any],
) -> None:  # fmt: skip
    """Talk with a model that was trained on conversations.

    Each line that is typed is a message, and the model answers it; /help lists the commands. From a pipe, each line is
    a message, too. If a conversation gets longer than the model can look back on, its oldest messages are forgotten.
    """
    from gpt import chat_template
    from gpt.run import Run
    from gpt.tokenizer import Tokenizer

    precision = settings.pop("precision", TrainConfig.precision)
    sampling, run = SamplingConfig(**settings), Run(run_name, runs_dir)
    if run.tokenizer_path.exists() and not chat_template.is_used_by(Tokenizer.load(run.tokenizer_path)):
        raise UserError(
            f"run {run.name} was not trained on conversations, as its tokenizer lacks the markers "
            f"{', '.join(chat_template.MARKERS.values())}: use hipgpt generate {run.options}"
        )
    model, tokenizer, _ = loaded(run, step, best, device, precision, blas)
    Session(Settings(num_tokens, sampling, stops, seed), _Conversation(model, tokenizer, system)).run()


class _Conversation:
    """The messages so far. Each text that is typed is the user's next one."""

    greeting = "Type a message. /help lists the commands."

    def __init__(self, model: "GPT", tokenizer: "Tokenizer", system: str | None) -> None:
        from gpt.chat_template import SYSTEM, Message

        self._model, self._tokenizer = model, tokenizer
        self._system = [Message(SYSTEM, _plain(system, "--system"))] if system is not None else []
        self._messages: list[Message] = []
        self.commands: Commands = {"new": ("Begins a new conversation.", self._begin_anew)}

    def answer(self, text: str, settings: Settings, number: int) -> Pieces:
        from gpt.chat_template import MARKERS, USER, Message, rendered
        from gpt.generate import generate

        asked = Message(USER, _plain(text, "the message"))
        note_unknown("the message", self._tokenizer, text)
        kept = self._fitting([*self._messages, asked], settings.num_tokens)
        eos_id = NO_EOS if self._tokenizer.end_of_text is None else self._tokenizer.end_of_text
        options = {**settings.options, "stops": (*settings.stops, *MARKERS.values())}
        pieces = generate(
            self._model, self._tokenizer, rendered([*self._system, *kept], answer=True), eos_id=eos_id, sample=number,
            **options,
        )  # fmt: skip
        return self._remembered(kept, pieces)

    def _remembered(self, messages: list["Message"], pieces: Pieces) -> Pieces:
        from gpt.chat_template import ASSISTANT, Message

        said = ""
        try:
            for piece in pieces:
                said += piece
                yield piece
        finally:  # an answer that Ctrl-C cut short belongs to the conversation, too
            pieces.close()
            self._messages = [*messages, Message(ASSISTANT, said)]

    def _fitting(self, messages: list["Message"], num_tokens: int) -> list["Message"]:
        """The messages, without the oldest ones if an answer of so many tokens (or half a window) would not fit."""
        from gpt.system.filesystem import note

        window, count = self._model.config.max_seq_len, len(messages)
        while len(messages) > 1 and self._length(messages) > window - min(num_tokens, window // 2):
            messages = messages[2:]  # a question and its answer
        if len(messages) < count:
            note("chat", f"the oldest messages are forgotten, because the model looks back on {window} tokens")
        return messages

    def _length(self, messages: Sequence["Message"]) -> int:
        from gpt.chat_template import rendered

        return len(self._tokenizer.encode(rendered([*self._system, *messages], answer=True)))

    def _begin_anew(self, _settings: Settings, _number: int) -> None:
        self._messages = []
        click.echo("A new conversation.", err=True)


def _plain(text: str, where: str) -> str:
    """Returns the text. Raises UserError if it has a marker in it, or is not valid text."""
    from gpt.chat_template import plain_content

    try:
        return plain_content(text, where)
    except ValueError as error:
        raise UserError(f"the conversation {error}") from None
