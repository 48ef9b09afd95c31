"""A conversation becomes a text with markers, and the tokens of the assistant's messages are those that are learned."""

import doctest
import re

import numpy as np
import pytest

from gpt import chat_template
from gpt.chat_template import MARKERS, Learned, Message, is_used_by, messages_of, parsed, rendered, signed, stop_ids
from gpt.tokenizer import Tokenizer

TALK = [
    Message("system", "Be brief."), Message("user", "2 + 2?"), Message("assistant", "4"), Message("user", "\nthanks "),
    Message("assistant", ""),
]  # fmt: skip


def tokenizer_with_markers(kind="byte"):
    return Tokenizer(kind=kind, special_tokens=tuple(MARKERS.values()))


def test_the_examples_of_the_module_give_the_results_that_stand_there():
    failed, tried = doctest.testmod(chat_template)
    assert not failed
    assert tried


def test_parsing_gives_back_the_messages_that_were_rendered():
    assert parsed(rendered(TALK)) == TALK
    assert parsed(rendered(TALK) + "<|endoftext|>" + rendered(TALK)) == TALK
    assert parsed(rendered(TALK[:2], answer=True)) == [*TALK[:2], Message("assistant", "")]


@pytest.mark.parametrize("text", ["", "hello", "hello<|user|>you"])
def test_a_text_that_begins_with_no_marker_is_no_conversation(text):
    with pytest.raises(ValueError, match="a conversation begins with one of <|system|>"):
        parsed(text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "is [], but must be a list of messages"),
        ("hello", "is 'hello', but must be a list of messages"),
        ([{"role": "user"}], "as message 1, but must have an object with role and content"),
        (["hello"], "has 'hello' as message 1, but must have an object with role and content"),
        (
            [{"role": "tool", "content": "a"}],
            "has the role 'tool' in message 1, but must have one of system, user, assistant",
        ),
        ([{"role": ["user"], "content": "a"}], "has the role ['user'] in message 1"),
        ([{"role": "user", "content": None}], "has null as the content of message 1, but must have text"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
            "as the content of message 1, but must have text",
        ),
        ([{"role": "user", "content": "a<|user|>"}], "has <|user|> in the content of message 1, which would end it"),
        ([{"role": "user", "content": "<|endoftext|>"}], "has <|endoftext|> in the content of message 1"),
        ([{"role": "user", "content": "\ud800"}], "has half of a surrogate pair in the content of message 1"),
        ([{"role": "assistant", "content": "a", "weight": 0.5}], "has the weight 0.5 in message 1, but must have 0 or"),
        ([{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}], "has tool calls in message 1, which"),
    ],
)
def test_values_that_are_no_messages_are_refused(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        messages_of(values)


def test_a_content_may_be_a_list_with_one_text():
    """As OpenAI's clients and datasets have it, in parquet with the fields of pictures."""
    parts = [{"type": "text", "text": "a", "image_url": None}]
    assert messages_of([{"role": "user", "content": parts}]) == [Message("user", "a")]
    with pytest.raises(ValueError, match="as the content of message 1, but must have text"):
        messages_of([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}])
    with pytest.raises(ValueError, match="has null as the content of message 1, but must have text"):
        messages_of([{"role": "user", "content": [{"type": "text", "text": None}]}])


def test_a_message_of_the_assistants_with_a_weight_of_0_is_not_learned():
    values = [{"role": "assistant", "content": "a", "weight": 0.0}, {"role": "assistant", "content": "b", "weight": 1}]
    assert [message.learned for message in messages_of(values)] == [False, True]
    assert rendered(messages_of(values), answer=True) == "<|assistant|>a<|assistant|>b<|assistant|>"


def test_what_others_say_may_have_any_weight_because_it_is_not_learned():
    values = [{"role": "user", "content": "a", "weight": 0.0}, {"role": "assistant", "content": "b", "weight": 1.0}]
    assert signed(messages_of(values)) == "<|user|>a<|assistant|>b"


@pytest.mark.parametrize("kind", ["word", "byte", "char"])
def test_a_tokenizer_with_all_markers_uses_the_template(kind):
    tokenizer = tokenizer_with_markers(kind)
    assert is_used_by(tokenizer)
    assert [tokenizer.piece(id) for id in sorted(stop_ids(tokenizer))] == ["<|endoftext|>", *MARKERS.values()]


def test_a_tokenizer_that_lacks_a_marker_does_not_use_it():
    tokenizer = Tokenizer(kind="byte", special_tokens=("<|user|>", "<|assistant|>"))
    assert not is_used_by(tokenizer)
    for asked in (stop_ids, Learned.by):
        with pytest.raises(ValueError, match="lacks one of <|system|>"):
            asked(tokenizer)


def test_the_assistants_tokens_are_learned_and_all_of_a_document_that_is_no_conversation():
    tokenizer = tokenizer_with_markers()
    ids = np.array(tokenizer.encode(rendered(TALK) + "<|endoftext|>just a text<|endoftext|><|user|>a<|assistant|>b"))
    read, learned = Learned.by(tokenizer)(ids)
    assert read.tolist() == ids.tolist()
    parts = np.split(ids, np.flatnonzero(np.diff(learned)) + 1)
    assert [tokenizer.decode(part.tolist()) for part in parts] == [
        "<|system|>Be brief.<|user|>2 + 2?<|assistant|>", "4<|user|>", "\nthanks <|assistant|>",
        "<|endoftext|>just a text<|endoftext|>", "<|user|>a<|assistant|>", "b",
    ]  # fmt: skip
    assert learned[0] == 0


def test_what_is_learned_does_not_depend_on_where_blocks_end():
    ids = np.random.default_rng(0).integers(0, 8, 300)
    whole = Learned([1, 2, 3], end=0)(ids)
    signs = [at for at in range(1, 300) if (ids[at - 1], ids[at]) == (3, 1)]
    assert signs
    assert whole[0].tolist() == np.delete(ids, signs).tolist()
    for size in (1, 2, 7):
        learned = Learned([1, 2, 3], end=0)
        blocks = [learned(ids[at : at + size]) for at in range(0, 300, size)]
        for parts, all_of_it in zip(zip(*blocks, strict=True), whole, strict=True):
            assert np.concatenate(parts).tolist() == all_of_it.tolist()
    assert [each.tolist() for each in learned(ids[:0])] == [[], []]
