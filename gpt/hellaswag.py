"""HellaSwag (Zellers et al. 2019): which of four endings continues a description of everyday events?

A model picks the ending to which it gives the highest probability. Two accuracies are usual: by the sum of the tokens'
log-probabilities, and by that sum divided by the ending's length in characters, which does not favor short endings. The
texts are prepared, and cut into context and ending, exactly as lm-evaluation-harness does, so the accuracies can be
compared with published ones. Chance is 25 %.

For example, the context "Cooking: A man cuts an onion. He" and the ending "fries it." are the tokens of "Cooking: A man
cuts an onion. He fries it." The tokens of the context alone are not scored; those behind them are.
"""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt.errors import UserError, cannot
from gpt.model import GPT
from gpt.system.reading import SMALL, TEXT, Kind, check, parse, raise_unless_regular
from gpt.tokenizer import Tokenizer

_ADVICE = "give HellaSwag's own JSON Lines file, such as hellaswag_val.jsonl"
_ENDINGS = Kind(
    "a list of texts", lambda value: isinstance(value, list) and bool(value) and all(map(TEXT.holds, value))
)
_LABEL = Kind("the number of an ending", lambda value: type(value) is int or (type(value) is str and value.isdecimal()))
_LINE = {"activity_label": TEXT, "ctx_a": TEXT, "ctx_b": TEXT, "endings": _ENDINGS, "label": _LABEL}


class Question(NamedTuple):
    """A context, its possible endings, and the number of the right one."""

    context: str
    endings: list[str]
    answer: int


class Result(NamedTuple):
    """The shares of right answers, with their standard errors."""

    questions: int
    accuracy: float
    normalized: float

    def error(self, share: float) -> float:
        """The standard error of a share: sqrt(p (1 - p) / (n - 1)). One question gives none, so it counts as 0."""
        return math.sqrt(share * (1 - share) / max(1, self.questions - 1))

    def to_json(self) -> dict[str, Any]:
        return {
            "questions": self.questions,
            "accuracy": self.accuracy, "accuracy_stderr": self.error(self.accuracy),
            "normalized_accuracy": self.normalized, "normalized_accuracy_stderr": self.error(self.normalized),
        }  # fmt: skip

    def __str__(self) -> str:
        shares = {"Accuracy": self.accuracy, "Normalized accuracy": self.normalized}
        return " | ".join(f"{name}: {share:.2%} ± {self.error(share):.2%}" for name, share in shares.items())


def read_questions(path: Path) -> list[Question]:
    """The questions of a JSON Lines file with the keys activity_label, ctx_a, ctx_b, endings and label.

    Raises UserError, which names the line, if the file is missing or one of its lines is not a question.
    """
    questions: list[Question] = []
    try:
        with cannot(f"read {path}"):
            raise_unless_regular(path)
            with open(path, "rb") as file:
                while line := file.readline(SMALL):
                    questions.append(_question(path, len(questions) + 1, line))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: {_ADVICE}") from None
    if not questions:
        raise UserError(f"{path} is empty: {_ADVICE}")
    return questions


def _question(path: Path, number: int, line: bytes) -> Question:
    try:
        found = check(parse(line), _LINE)
        label = int(found["label"])
        if label >= len(found["endings"]):
            raise ValueError(f"label is {label}, but there are {len(found['endings'])} endings")
        endings = [prepared(ending) for ending in found["endings"]]
        if not all(endings):
            raise ValueError("one of its endings is empty")
    except ValueError as error:
        raise UserError(f"line {number} of {path} is no question: {error}: {_ADVICE}") from None
    context = prepared(f"{found['activity_label']}: {found['ctx_a']} {found['ctx_b'].capitalize()}")
    return Question(context, endings, label)


def prepared(text: str) -> str:
    """A text without the markup that its source, WikiHow, left in it.

    Example:

    >>> prepared(" Peel it. [title] Cut it. [step] Use a  knife.")
    'Peel it.. Cut it. Use a knife.'
    """
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def evaluate(model: GPT, tokenizer: Tokenizer, questions: Sequence[Question], advance: Callable[..., None]) -> Result:
    """The shares of the questions that a model answers rightly. The model is made for as many sequences as endings.

    Raises UserError if an ending has no token, or more than the model can look back on.
    """
    right = normalized = 0
    for number, question in enumerate(questions):
        totals = log_probabilities(model, tokenizer, question)
        lengths = np.array([len(ending) for ending in question.endings])
        right += int(totals.argmax()) == question.answer
        normalized += int((totals / lengths).argmax()) == question.answer
        advance(number + 1, total=len(questions))
    return Result(len(questions), right / len(questions), normalized / len(questions))


def log_probabilities(model: GPT, tokenizer: Tokenizer, question: Question) -> np.ndarray:
    """The log-probability of each ending behind the context, float64 [endings].

    A context that is too long loses its beginning.
    """
    rows: list[list[int]] = []
    counts, window = [], model.config.max_seq_len
    context = tokenizer.encode(question.context.rstrip())  # white space between the two belongs to the ending
    for ending in question.endings:
        ids = tokenizer.encode(f"{question.context} {ending}")
        count = len(ids) - len(context)
        if not 1 <= count <= window:
            raise UserError(f"an ending of HellaSwag has {count} tokens, but the model can read from 1 to {window}: "
                            "take a model with a longer context")  # fmt: skip
        before = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
        rows.append((before + ids if not context else ids)[-window - 1 :])
        counts.append(count)
    # Shorter rows are filled up behind their end, which no earlier position can see.
    length = max(map(len, rows)) - 1
    filled = np.array([tokens + [0] * (length + 1 - len(tokens)) for tokens in rows], np.int32)
    from_host = model.ops.from_host
    losses, _ = model.token_losses(from_host(filled[:, :-1]), from_host(filled[:, 1:]))
    ends = [len(tokens) - 1 for tokens in rows]
    return np.array([
        -row[end - count : end].sum(dtype=np.float64) for row, end, count in zip(losses, ends, counts, strict=True)
    ])  # fmt: skip
