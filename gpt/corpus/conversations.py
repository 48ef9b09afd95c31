"""Conversations in JSON Lines and parquet: what people tune models on. gpt/chat_template.py makes them texts.

A line is one of these, and its other fields are passed over:

    {"prompt": "What is 2 + 2?", "completion": "4"}
    {"messages": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]}

A row of a parquet file has these fields as columns. A field that is null is not there. A file is read so if its first
line, or its columns, have one of these fields and no field `text`.
"""

import hashlib
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from gpt.chat_template import ASSISTANT, USER, Learned, Message, messages_of, plain_content, rendered
from gpt.errors import naming
from gpt.tokenizer import Tokenizer
from gpt.tokens import Tokens

_PAIR = ("prompt", "completion")
FIELDS = ("messages", *_PAIR)
_IDS_AT_ONCE = 1 << 22  # ids that are looked at at a time


def has_one(record: Mapping[str, Any], usual_field: str) -> bool:
    """Whether a file whose first line is this record has conversations."""
    return are_among({field for field, value in record.items() if value is not None}, usual_field)


def are_among(names: Container[str], usual_field: str) -> bool:
    """Whether fields, or the columns of a table, are those of conversations."""
    return usual_field not in names and any(field in names for field in FIELDS)


def text_of(record: Mapping[str, Any]) -> str:
    """The text of a conversation. Raises ValueError with what follows the line's number in a message, if it is none.

    >>> text_of({"prompt": "What is 2 + 2?", "completion": "4"})
    '<|user|>What is 2 + 2?<|assistant|>4'
    """
    record = {field: record[field] for field in FIELDS if record.get(field) is not None}
    try:
        messages = messages_of(record["messages"]) if "messages" in record else _pair(record)
    except ValueError as error:
        raise ValueError(f": the conversation {error}") from None
    if not any(message.role == ASSISTANT for message in messages):
        raise ValueError(": the conversation has no message of the assistant, so there is nothing to learn")
    return rendered(messages)


def _pair(record: Mapping[str, Any]) -> list[Message]:
    if missing := [key for key in _PAIR if key not in record]:
        raise ValueError(f"has no {missing[0]}, but must have {' and '.join(_PAIR)}, or messages")
    prompt, completion = (plain_content(record[key], f"its {key}") for key in _PAIR)
    return [Message(USER, prompt), Message(ASSISTANT, completion)]


def write_counted(tokens: Tokens, target: Path, tokenizer: Tokenizer) -> tuple[int, str]:
    """Write a file with a byte for each token: 1 if a model learns it, else 0 (`gpt.chat_template.Learned`).

    Returns how many are learned, and the SHA-256 of the file. Raises OSError, which names it.
    """
    learned, digest, count = Learned.by(tokenizer), hashlib.sha256(), 0
    with naming(target), open(target, "wb") as file:
        for first in range(0, len(tokens), _IDS_AT_ONCE):
            found = learned(tokens[first : first + _IDS_AT_ONCE])
            count += int(found.sum())
            digest.update(found.data)
            file.write(found.data)
    return count, digest.hexdigest()
