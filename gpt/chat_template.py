"""How a conversation becomes a text that a model reads and writes, and which tokens of it a model learns.

Each message begins with the marker of its role and goes on to the next marker. The mark that ends a text, such as
`<|endoftext|>`, ends a conversation. A model learns the tokens of the assistant's messages, and the marker or mark
behind each of them. So it also learns to stop. What others say is read, but not learned:

    text     <|system|>Be brief.<|user|>What is 2 + 2?<|assistant|>4<|user|>And 3 + 3?<|assistant|>6<|endoftext|>
    learned                                                        4<|user|>                       6<|endoftext|>

Some of the assistant's messages are not to be learned, such as those of a prompt. Encoding takes a text and knows
nothing of messages, so these have a sign in the text: the system's marker right behind the assistant's. `Learned` takes
it out of the ids, so no model reads it.

The markers are special tokens of the tokenizer. A run whose tokenizer has all three of them uses this template
(`is_used_by`). They get there by themselves: a tokenizer that is learned from conversations has them, and one that is
given, or that a model brings along, gets them behind its own tokens.

To let a model answer, give it `rendered(messages, answer=True)`, and let it write up to one of `stop_ids`.

>>> rendered([Message("user", "What is 2 + 2?")], answer=True)
'<|user|>What is 2 + 2?<|assistant|>'
>>> parsed("<|user|>What is 2 + 2?<|assistant|>4<|endoftext|>")
[Message(role='user', content='What is 2 + 2?', learned=True), Message(role='assistant', content='4', learned=True)]
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gpt.errors import shown
from gpt.tokenizer import Tokenizer
from gpt.tokenizer.marks import END_OF_TEXT, ENDS

SYSTEM, USER, ASSISTANT = ROLES = ("system", "user", "assistant")
MARKERS = {role: f"<|{role}|>" for role in ROLES}  # the special token with which a message of each role begins

# The same for other programs, in Jinja: `rendered` of `messages`, with `add_generation_prompt` for `answer`. No marker
# stands in it as a whole, because llama.cpp may take a template that has some of them for one that it knows by heart.
JINJA = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('a message has the role system, user or assistant, not ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|' + 'assistant' + '|>' }}{% endif %}"
)

_MARKER = re.compile("|".join(map(re.escape, MARKERS.values())))
_RESERVED = re.compile("|".join(map(re.escape, (*MARKERS.values(), *ENDS))))
_ROLE_OF = {marker: role for role, marker in MARKERS.items()}


class Message(NamedTuple):
    """What one of ROLES says in a conversation. `learned` tells whether a model learns it, if it is the assistant's."""

    role: str
    content: str
    learned: bool = True


def rendered(messages: Iterable[Message], answer: bool = False) -> str:
    """The text of a conversation, without an end. With `answer`, the assistant's next message begins behind it."""
    text = "".join(f"{MARKERS[role]}{content}" for role, content, _ in messages)
    return text + MARKERS[ASSISTANT] if answer else text


def signed(messages: Iterable[Message]) -> str:
    """The same with the sign in each message of the assistant's that is not learned. Only `Learned` may read it.

    >>> signed([Message("user", "Hi"), Message("assistant", "Hello", learned=False)])
    '<|user|>Hi<|assistant|><|system|>Hello'
    """
    return rendered(
        message if message.learned or message.role != ASSISTANT else
        message._replace(content=MARKERS[SYSTEM] + message.content)
        for message in messages
    )  # fmt: skip


def without_signs(text: str) -> str:
    """The text of `signed` as that of `rendered`, for a tokenizer without markers."""
    return text.replace(MARKERS[ASSISTANT] + MARKERS[SYSTEM], MARKERS[ASSISTANT])


def parsed(text: str) -> list[Message]:
    """The messages of a text that `rendered` has made, up to the mark that ends it, if there is one.

    Raises ValueError if it does not begin with a marker.
    """
    text = text.partition(END_OF_TEXT)[0]
    markers = list(_MARKER.finditer(text))
    if not markers or markers[0].start():
        raise ValueError(
            f"a conversation begins with one of {', '.join(MARKERS.values())}, not with {shown(text[:20])}"
        )
    ends = [*(marker.start() for marker in markers[1:]), len(text)]
    return [Message(_ROLE_OF[marker[0]], text[marker.end() : end]) for marker, end in zip(markers, ends, strict=True)]


def messages_of(values: object) -> list[Message]:
    """The messages in a list of objects with `role` and `content`, as OpenAI's interface has them.

    One of the assistant's may have a `weight` of 0, and is then not learned. A content may be a list with one part that
    has a text: clients that can send pictures send texts so, too.

    Raises ValueError, with what follows "the conversation" in a message, if they are anything else, if there are none,
    or if a content has a marker or `<|endoftext|>` in it, which would end the message.

    >>> messages_of([{"role": "assistant", "content": "Hello", "weight": 0}])
    [Message(role='assistant', content='Hello', learned=False)]
    """
    if not isinstance(values, list) or not values:
        raise ValueError(f"is {shown(values)}, but must be a list of messages")
    return [_message(number, value) for number, value in enumerate(values, 1)]


def _message(number: int, value: object) -> Message:
    if not isinstance(value, Mapping) or not {"role", "content"} <= value.keys():
        raise ValueError(f"has {shown(value)} as message {number}, but must have an object with role and content")
    role, content = value["role"], value["content"]
    if role not in ROLES:
        raise ValueError(f"has the role {shown(role)} in message {number}, but must have one of {', '.join(ROLES)}")
    weight = value.get("weight")
    if role == ASSISTANT and weight not in (None, 0, 1):  # the others are not learned, whatever they weigh
        raise ValueError(f"has the weight {shown(weight)} in message {number}, but must have 0 or 1")
    if value.get("tool_calls"):
        raise ValueError(f"has tool calls in message {number}, which hipgpt does not do")
    match content:
        case [{"type": "text", "text": text}]:
            content = text
    return Message(role, plain_content(content, f"the content of message {number}"), weight != 0)


def plain_content(content: Any, where: str) -> str:
    """Returns what a message says. Raises ValueError, as `messages_of` does, if it is not plain text."""
    if not isinstance(content, str):
        value = "null" if content is None else shown(content)
        raise ValueError(f"has {value} as {where}, but must have text")
    if found := _RESERVED.search(content):
        raise ValueError(f"has {found[0]} in {where}, which would end it")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise ValueError(f"has half of a surrogate pair in {where}") from None
    return content


def is_used_by(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer has all markers as special tokens."""
    return set(MARKERS.values()) <= set(tokenizer.special_tokens)


def stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that end the assistant's message: those of the markers, and of the mark that ends a text.

    Raises ValueError if the tokenizer lacks a marker.
    """
    marks = _ids(tokenizer)
    return frozenset(marks.values()) | ({tokenizer.end_of_text} if tokenizer.end_of_text is not None else set())


def _ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The id of the marker of each role."""
    if not is_used_by(tokenizer):
        raise ValueError(f"the tokenizer lacks one of {', '.join(MARKERS.values())}")
    return {role: tokenizer.encode(marker)[0] for role, marker in MARKERS.items()}


class Learned:
    """Tells which tokens of a text a model shall learn. The text's ids come in blocks, one after the other.

    These are the tokens of the assistant's messages, and the marker or mark behind each, except those of messages with
    the sign of `signed`, which is taken out of the ids. A document that does not begin with a marker is no
    conversation: all of its tokens are learned.

    Example: with 0 as the mark that ends a text, and 1, 2 and 3 as the markers of the system, the user and the
    assistant, the conversation 2 7 8 3 9 0, the document 7 8 0, and a conversation whose first answer is not learned.

    >>> learned = Learned([1, 2, 3], end=0)
    >>> for block in ([2, 7, 8, 3, 9], [0, 7, 8, 0], [2, 7, 3, 1, 8, 2, 7, 3, 9, 0]):
    ...     print(*map(np.ndarray.tolist, learned(np.array(block))))
    [2, 7, 8, 3, 9] [0, 0, 0, 0, 1]
    [0, 7, 8, 0] [1, 1, 1, 1]
    [2, 7, 3, 8, 2, 7, 3, 9, 0] [0, 0, 0, 0, 0, 0, 0, 1, 1]
    """

    def __init__(self, markers: Iterable[int], end: int) -> None:
        self._system, *_, self._assistant = self._markers = tuple(markers)
        self._end = self._last = self._before = end  # `_last` is the last marker or mark so far, `_before` the last id

    @classmethod
    def by(cls, tokenizer: Tokenizer) -> "Learned":
        """For the ids of this tokenizer. Raises ValueError if it lacks a marker, or a mark that ends a text."""
        if tokenizer.end_of_text is None:
            raise ValueError("the tokenizer has no token that ends a text")
        return cls(_ids(tokenizer).values(), tokenizer.end_of_text)

    def __call__(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The next ids (integers [n]) without the signs, [m], and 1 for each of these that is learned, uint8 [m]."""
        behind = np.concatenate([[self._before], ids])  # id number i stands behind number i of these
        is_sign = (ids == self._system) & (behind[:-1] == self._assistant)
        self._before = int(behind[-1])
        (places,) = np.isin(ids, (*self._markers, self._end)).nonzero()
        marks = np.concatenate([[self._last], ids[places]])  # the last one before this block, and those in it
        before = np.repeat(marks, np.diff(places, prepend=-1, append=len(ids) - 1))  # the last one before each id
        self._last = int(marks[-1])
        begins = (before == self._end) & np.isin(ids, self._markers)  # the first marker of a conversation
        found = ((before == self._assistant) | (before == self._end) & ~begins).astype(np.uint8)
        return ids[~is_sign], found[~is_sign]
