"""Conversations in JSON and parquet: what people tune models on. gpt/chat_template.py makes them texts.

A record, that is, a line, an object of a list or a row, has one of these forms, which are those of OpenAI, ShareGPT,
TRL (twice) and Alpaca. Its other fields are passed over:

    {"messages": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]}
    {"conversations": [{"from": "human", "value": "What is 2 + 2?"}, {"from": "gpt", "value": "4"}]}
    {"prompt": "What is 2 + 2?", "completion": "4"}
    {"prompt": [{"role": "user", "content": "What is 2 + 2?"}], "completion": [{"role": "assistant", "content": "4"}]}
    {"instruction": "Compute the sum.", "input": "2 + 2", "output": "4"}

A model learns what the assistant says, except in a prompt, and in a message of OpenAI's that has the `weight` 0.
The text of a field `system` becomes the first message. A record with a `history` is refused, because what was said
before would be lost. A row of a parquet file has these fields as columns. A field that is null is not there. A file is
read so if its first record, or its columns, have one of the fields with which a form begins and no field `text`.
"""

from collections.abc import Callable, Container, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gpt.chat_template import ASSISTANT, SYSTEM, USER, Learned, Message, messages_of, plain_content, signed
from gpt.errors import naming
from gpt.tokenizer import Tokenizer
from gpt.tokens import Tokens

_LISTS = ("messages", "conversations")
_EXCHANGES = ((("prompt",), "completion"), (("instruction", "input"), "output"))
_SIGNS = (*_LISTS, "prompt", "completion", "instruction")  # a record with one of these is meant to be a conversation
_HISTORY = "history"  # what was said before, in a form that LLaMA-Factory has added to Alpaca's
FIELDS = (*_LISTS, SYSTEM, _HISTORY, *(field for asked, answered in _EXCHANGES for field in (*asked, answered)))
FORMS = "messages, conversations, prompt and completion, or instruction and output"
_ROLES = {"human": USER, "gpt": ASSISTANT}  # ShareGPT's names
_IDS_AT_ONCE = 1 << 22  # ids that are looked at at a time


def has_one(record: Mapping[str, Any], usual_field: str) -> bool:
    """Whether a file whose first record is this one has conversations. None of their fields holds an object."""
    nulls = {field for field, value in record.items() if value is None and field != usual_field}
    return are_among(nulls | {field for field, value in record.items() if isinstance(value, str | list)}, usual_field)


def are_among(names: Container[str], usual_field: str) -> bool:
    """Whether fields, or the columns of a table, are those of conversations."""
    return usual_field not in names and any(field in names for field in _SIGNS)


def text_of(record: Mapping[str, Any]) -> str:
    """The text of a conversation, with the signs of `signed`, which `write_counted` takes away; "" if it has nulls.

    Raises ValueError with what follows the record's number in a message, if it is none.

    >>> text_of({"prompt": "What is 2 + 2?", "completion": "4"})
    '<|user|>What is 2 + 2?<|assistant|>4'
    >>> text_of({"instruction": "Compute the sum.", "input": "2 + 2", "output": "4"})
    '<|user|>Compute the sum.\\n\\n2 + 2<|assistant|>4'
    """
    if _is_empty(record):
        return ""
    try:
        messages = _messages({field: record[field] for field in FIELDS if record.get(field) is not None})
    except ValueError as error:
        raise ValueError(f": the conversation {error}") from None
    if not any(message.role == ASSISTANT and message.learned for message in messages):
        of_weight = " with a weight" if any(message.role == ASSISTANT for message in messages) else ""
        raise ValueError(f": the conversation has no message of the assistant{of_weight}, so there is nothing to learn")
    if any(first[:2] == (ASSISTANT, "") and second.role == SYSTEM for first, second in pairwise(messages)):
        raise ValueError(": the conversation has an empty message of the assistant in front of one of the system")
    return signed(messages)


def _is_empty(record: Mapping[str, Any]) -> bool:
    """Whether a record has the fields of a form, one of them null, and no other form without nulls.

    >>> _is_empty({"prompt": "What is 2 + 2?", "completion": None}), _is_empty({"prompt": "What is 2 + 2?"})
    (True, False)
    """
    forms = [(field,) for field in _LISTS] + [(asked[0], answered) for asked, answered in _EXCHANGES]
    found = [[record[field] for field in form] for form in forms if all(field in record for field in form)]
    return bool(found) and all(None in values for values in found)


def _messages(record: Mapping[str, Any]) -> list[Message]:
    """The messages of a record without nulls. Raises ValueError as `text_of` does."""
    if record.get(_HISTORY):
        raise ValueError(f"has a {_HISTORY}, which would be lost: put what was said before into messages")
    before = plain_content(record.get(SYSTEM, ""), f"its {SYSTEM}")
    return [*([Message(SYSTEM, before)] if before else []), *messages_of(_listed(record))]


def _listed(record: Mapping[str, Any]) -> object:
    """The messages of a record as OpenAI's interface has them, not checked yet. Raises ValueError as `text_of` does."""
    for field in _LISTS:
        if field in record:
            turns = record[field]
            return list(map(_as_openai, turns)) if isinstance(turns, list) else turns
    for asked, answered in _EXCHANGES:
        missing = [field for field in (asked[0], answered) if field not in record]
        if len(missing) == 1:
            raise ValueError(f"has no {missing[0]}, but must have {asked[0]} and {answered}")
        if not missing:
            question, answer = _said(USER, record, *asked), _said(ASSISTANT, record, answered)
            question = [{**each, "weight": 0} if isinstance(each, Mapping) else each for each in question]
            if not any(map(_is_the_assistants, answer)):
                raise ValueError(f"has no message of the assistant in its {answered}")
            return question + answer
    raise ValueError(f"has no field of one, but must have {FORMS}")


def _as_openai(turn: object) -> object:
    """A message in OpenAI's form, if it is one in ShareGPT's, with `from` and `value`."""
    if not isinstance(turn, Mapping) or not isinstance(turn.get("from"), str) or "value" not in turn:
        return turn
    return {"role": _ROLES.get(turn["from"], turn["from"]), "content": turn["value"], "weight": turn.get("weight")}


def _said(role: str, record: Mapping[str, Any], *fields: str) -> list[Any]:
    """The messages in a field, if it is a list of them; else the one message of this role that is in some fields."""
    if len(fields) == 1 and isinstance(record[fields[0]], list):
        return list(record[fields[0]])
    parts = [plain_content(record[field], f"its {field}") for field in fields if field in record]
    return [{"role": role, "content": "\n\n".join(filter(None, parts))}]


def _is_the_assistants(message: object) -> bool:
    return isinstance(message, Mapping) and message.get("role") == ASSISTANT


def write_counted(
    tokens: Tokens, target: Path, tokenizer: Tokenizer, write: Callable[[np.ndarray], object] = lambda ids: None
) -> int:
    """Append to a file a byte for each token: 1 if a model learns it, else 0 (`gpt.chat_template.Learned`).

    The signs among the tokens have none: `write` is given the ids of the others, in blocks. Returns how many are
    learned. Raises OSError, which names the file.
    """
    learned, count = Learned.by(tokenizer), 0
    with naming(target), open(target, "ab") as file:
        for first in range(0, len(tokens), _IDS_AT_ONCE):
            ids, found = learned(tokens[first : first + _IDS_AT_ONCE])
            count += int(found.sum())
            file.write(found.data)
            write(ids)
    return count
