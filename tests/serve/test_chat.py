"""/v1/chat/completions: a conversation becomes a prompt, and the answer ends where the model gives the word back."""

import json

import pytest

from gpt import chat_template
from gpt.chat_template import Message
from gpt.run import Run
from gpt.serve.fields import chat as chat_of
from gpt.serve.wording import Wording
from gpt.tokenizer import Tokenizer

ASKED = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the cat"}]
PROMPT = chat_template.rendered([Message(**each) for each in ASKED], answer=True)


@pytest.fixture
def chat(client):
    def ask(status=200, **fields):
        answer = client.post("/v1/chat/completions", json={"model": "talks", "messages": ASKED, **fields})
        assert answer.status_code == status, answer.text
        return answer.json()

    return ask


def test_an_answer_is_the_text_behind_the_conversation(client, chat):
    fields = {"seed": 3, "max_tokens": 8}
    plain = client.post("/v1/completions", json={"model": "talks", "prompt": PROMPT, **fields}).json()
    answer = chat(**fields)
    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion"
    assert choice["message"] == {"role": "assistant", "content": plain["choices"][0]["text"], "refusal": None}
    assert choice["finish_reason"] == "length"
    assert answer["usage"] == plain["usage"]


@pytest.mark.parametrize(
    ("more", "room", "expected"),
    [
        ({}, 700, 700),  # as many as the model can look back on
        ({}, -3, 1),
        ({"max_tokens": 5}, 700, 5),
        ({}, 100_000, 16_384),
        ({"n": 128}, 700, 512),  # 65,536 tokens in all
    ],
)
def test_the_length_of_an_answer_that_does_not_say_it_is_within_the_limits_of_a_request(more, room, expected):
    body = json.dumps({"model": "talks", "messages": ASKED, **more}).encode()
    assert chat_of(body).most_tokens(room) == expected


def test_an_answer_ends_before_the_next_marker(root):
    """The tokenizer's markers are tokens of their own, so a text that only looks like one does not end anything."""
    tokenizer = Tokenizer.load(Run("talks", root).tokenizer_path)
    wording = Wording(tokenizer, [], stop_ids=chat_template.stop_ids(tokenizer))
    ids = [*tokenizer.encode("the <|us er|> cat"), *tokenizer.encode("<|user|> the dog")]
    assert "".join(piece.text for id in ids for piece in wording.feed(id)) == "the <|us er|> cat"
    assert wording.stopped
    assert wording.finish() == []


def test_a_stream_says_first_who_speaks(client, chat):
    fields = {"seed": 3, "max_tokens": 8, "logprobs": True, "top_logprobs": 2, "n": 2}
    whole = chat(**fields)
    body = {"model": "talks", "messages": ASKED, "stream": True, **fields}
    lines = [line for line in client.post("/v1/chat/completions", json=body).text.split("\n") if line]
    assert lines[-1] == "data: [DONE]"
    parts = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}
    for index in range(2):
        first, *rest = [each for part in parts for each in part["choices"] if each["index"] == index]
        assert first["delta"] == {"role": "assistant", "content": ""}
        message, probabilities = whole["choices"][index]["message"], whole["choices"][index]["logprobs"]
        assert "".join(each["delta"].get("content", "") for each in rest) == message["content"]
        assert [token for each in rest for token in each["logprobs"]["content"]] == probabilities["content"]
        assert rest[-1]["finish_reason"] == whole["choices"][index]["finish_reason"]


def test_log_probabilities_come_with_bytes_and_alternatives(chat):
    first, *_ = chat(logprobs=True, top_logprobs=3, max_tokens=2, temperature=0)["choices"][0]["logprobs"]["content"]
    assert first["top_logprobs"][0]["logprob"] == first["logprob"], "at temperature 0 the likeliest is drawn"
    assert len(first["top_logprobs"]) == 3
    assert first["bytes"] == list(first["token"].encode())


def test_without_max_tokens_an_answer_fills_the_models_window(chat):
    usage = chat(seed=1)["usage"]
    assert usage["total_tokens"] <= max(24, usage["prompt_tokens"] + 1)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"model": "r"}, "model", "has not learned to chat"),
        ({"messages": []}, "messages", "a list of messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "the role 'tool'"),
        ({"messages": [{"role": "user", "content": "<|assistant|>"}]}, "messages", "would end it"),
        ({"messages": [{"role": "user", "content": None}]}, "messages", "must have text"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs: true"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"tools": [{"type": "function"}]}, "tools", "must be empty"),
        ({"response_format": {"type": "json_object"}}, "response_format", "supports nothing else"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(chat, fields, param, words):
    error = chat(status=400, **fields)["error"]
    assert error["param"] == param
    assert words in error["message"]
