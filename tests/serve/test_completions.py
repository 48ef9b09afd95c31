"""/v1/completions and /v1/models, as OpenAI's clients know them."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gpt import checkpoint
from gpt.config import SamplingConfig
from gpt.generate import generate, load_model
from gpt.ops.cpu.operations import CpuOps
from gpt.run import Run
from gpt.serve.wording import Wording
from gpt.tokenizer import Tokenizer
from tests.serve.served import client_of

PROMPT = "the cat sat"
RULES = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1}


def events(client, **fields) -> list[dict]:
    """The events of a streamed completion, once it has ended as it should."""
    with client.stream("POST", "/v1/completions", json={"model": "r", "stream": True, **fields}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        *lines, last = [line for line in answer.iter_lines() if line]
    assert last == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.fixture(scope="module")
def model(root):
    return load_model(checkpoint.load(Run("r", root)), CpuOps(threads=1))


@pytest.fixture(scope="module")
def tokenizer(root):
    return Tokenizer.load(root / "r" / "tokenizer.json")


def test_a_completion_is_the_text_that_generate_writes_with_this_seed(complete, model, tokenizer):
    expected = "".join(generate(model, tokenizer, PROMPT, num_tokens=40, sampling=SamplingConfig(), seed=7))
    answer = complete(PROMPT, max_tokens=40, seed=7, **RULES)
    assert answer["object"] == "text_completion"
    assert answer["model"] == "r"
    assert answer["system_fingerprint"] == "r-step3"
    assert answer["usage"] == {
        "prompt_tokens": len(tokenizer.encode(PROMPT)), "completion_tokens": 40,
        "total_tokens": len(tokenizer.encode(PROMPT)) + 40,
    }  # fmt: skip
    (choice,) = answer["choices"]
    assert choice == {"index": 0, "text": expected, "logprobs": None, "finish_reason": "length"}


def test_a_text_does_not_depend_on_who_else_is_served(complete):
    """More requests than places, so that they also join and leave while others are being written."""

    def text(seed):
        return complete(PROMPT, max_tokens=5 + 3 * seed, seed=seed, logprobs=2 if seed % 3 else None)["choices"][0]

    alone = list(map(text, range(12)))
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(text, range(12))) == alone


def test_without_a_seed_texts_differ(complete):
    assert complete(PROMPT, max_tokens=30)["choices"] != complete(PROMPT, max_tokens=30)["choices"]


def test_a_stream_has_the_same_texts_in_pieces(client, complete):
    fields = {"prompt": [PROMPT, "the dog"], "n": 2, "max_tokens": 20, "seed": 3, "logprobs": 1, "echo": True}
    whole, parts = complete(**fields), events(client, **fields, stream_options={"include_usage": True})
    assert len(parts) > 5
    assert len({part["id"] for part in parts}) == 1
    assert parts[-1]["choices"] == []
    assert parts[-1]["usage"] == whole["usage"]
    joined = [{"text": "", "tokens": [], "token_logprobs": [], "text_offset": []} for _ in range(4)]
    reasons = [None] * 4
    for choice in (choice for part in parts for choice in part["choices"]):
        mine = joined[choice["index"]]
        mine["text"] += choice["text"]
        for key in ("tokens", "token_logprobs", "text_offset"):
            mine[key] += choice["logprobs"][key]
        reasons[choice["index"]] = choice["finish_reason"]
    for mine, choice in zip(joined, whole["choices"], strict=True):
        assert mine["text"] == choice["text"]
        assert mine["tokens"] == choice["logprobs"]["tokens"]
        assert mine["text_offset"] == choice["logprobs"]["text_offset"]
        assert mine["token_logprobs"] == choice["logprobs"]["token_logprobs"]
    assert reasons == [choice["finish_reason"] for choice in whole["choices"]]


def test_each_sample_of_each_prompt_has_its_own_number(complete):
    answer = complete([PROMPT, "the dog"], n=3, max_tokens=20, seed=1)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert len({choice["text"] for choice in answer["choices"]}) == 6
    assert answer["choices"][0] == complete(PROMPT, max_tokens=20, seed=1)["choices"][0]


def test_a_prompt_may_be_ids(complete, tokenizer):
    ids = tokenizer.encode(PROMPT)
    by_text = complete(PROMPT, max_tokens=10, seed=1)["choices"]
    assert complete(ids, max_tokens=10, seed=1)["choices"] == by_text
    assert complete([ids], max_tokens=10, seed=1)["choices"] == by_text


def test_a_prompt_that_is_left_out_is_the_mark_that_begins_a_text(client, complete, tokenizer):
    answer = client.post("/v1/completions", json={"model": "r", "max_tokens": 10, "seed": 1}).json()
    assert answer["choices"] == complete([tokenizer.end_of_text], max_tokens=10, seed=1)["choices"]


@pytest.mark.parametrize("streams", [False, True])
def test_a_text_ends_before_the_first_stop_string(client, complete, streams):
    text = complete(PROMPT, max_tokens=60, seed=2)["choices"][0]["text"]
    stops = [text[30:34], text[20:23]]
    fields = {"prompt": PROMPT, "max_tokens": 60, "seed": 2, "stop": [*stops, "not in it"]}
    expected = text[: min(map(text.index, stops))]
    if streams:
        choices = [choice for part in events(client, **fields) for choice in part["choices"]]
        assert "".join(choice["text"] for choice in choices) == expected
        assert choices[-1]["finish_reason"] == "stop"
    else:
        (choice,) = complete(**fields)["choices"]
        assert choice["text"] == expected
        assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("kind", ["char", "byte"])
@pytest.mark.parametrize(
    ("stops", "expected"),
    [(["abcd", "bc"], "x a"), (["bc", "abcd"], "x a"), (["cd y"], "x ab"), (["y "], "x abcd y"), ([], "x abcd y")],
)
def test_where_a_text_ends_does_not_depend_on_how_it_is_cut_into_tokens(kind, stops, expected):
    """As for `hipgpt generate`, the stop string counts that is complete first."""
    tokenizer = Tokenizer(400, kind)
    tokenizer.train_bpe("x abcd y abcd " * 50)  # with "byte", " abcd" is one token
    wording = Wording(tokenizer, [], stops)
    pieces = [piece for id in tokenizer.encode("x abcd y") for piece in wording.feed(id)] + wording.finish()
    assert "".join(piece.text for piece in pieces) == expected


def test_log_probabilities_are_those_of_the_model_itself(client, root):
    """Whatever the temperature. The pass over a whole text and the one token by token differ by float32 roundings of
    logits, which are below 100 here: 1e-5 each, and the normalizer has no more."""
    fields = {"prompt": PROMPT, "max_tokens": 8, "seed": 5, "logprobs": 3, "echo": True, "temperature": 1.7}
    choice = client.post("/v1/completions", json={"model": "chars", **fields}).json()["choices"][0]
    run, found = Run("chars", root), choice["logprobs"]
    tokenizer, model = Tokenizer.load(run.tokenizer_path), load_model(checkpoint.load(run), CpuOps(threads=1))
    assert "".join(found["tokens"]) == choice["text"]
    assert found["text_offset"] == np.cumsum([0, *map(len, found["tokens"])])[:-1].tolist()
    ids = tokenizer.encode(choice["text"])
    logits = model.logits(np.array([ids], np.int32))[0].astype(np.float64)
    assert np.abs(logits).max() < 100
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
    expected = [logprobs[place, id] for place, id in enumerate(ids[1:])]
    assert found["token_logprobs"][1:] == pytest.approx(expected, abs=1e-4)
    for row, token, top in zip(logprobs, found["tokens"][1:], found["top_logprobs"][1:], strict=False):
        assert list(top)[:3] == [tokenizer.decode([id]) for id in np.argsort(-row)[:3]]
        assert token in top


def test_a_prompt_can_be_scored_without_a_text(complete):
    scored = complete(PROMPT, max_tokens=0, echo=True, logprobs=0)
    assert scored["choices"][0]["text"] == PROMPT
    assert scored["choices"][0]["finish_reason"] == "length"
    assert scored["usage"]["completion_tokens"] == 0
    longer = complete(PROMPT, max_tokens=3, echo=True, logprobs=0)["choices"][0]
    count = len(scored["choices"][0]["logprobs"]["tokens"])
    assert longer["logprobs"]["token_logprobs"][:count] == scored["choices"][0]["logprobs"]["token_logprobs"]


def test_alternatives_of_a_word_have_its_space(client):
    fields = {"model": "words", "prompt": "the cat", "max_tokens": 6, "seed": 1, "logprobs": 4}
    found = client.post("/v1/completions", json=fields).json()["choices"][0]["logprobs"]
    for token, top in zip(found["tokens"], found["top_logprobs"], strict=True):
        assert token in top
        assert all(name.startswith(" ") == token.startswith(" ") for name in top)


def test_a_text_may_be_longer_than_the_models_window(complete):
    assert complete(PROMPT, max_tokens=70, seed=1)["usage"]["completion_tokens"] == 70


def test_the_runs_that_have_a_model_are_the_models(client):
    listed = client.get("/v1/models").json()
    assert [each["id"] for each in listed["data"]] == ["chars", "r", "talks", "words"]
    assert client.get("/v1/models/r").json() == listed["data"][1]


@pytest.mark.parametrize(
    ("fields", "status", "param", "words"),
    [
        ({"model": "other"}, 404, "model", "there is no model 'other'"),
        ({"model": "../r"}, 404, "model", "there is no"),
        ({"model": None}, 400, "model", "model is missing"),
        ({"max_tokens": 0}, 400, "max_tokens", "only makes sense with echo"),
        ({"max_tokens": 10**9}, 400, "max_tokens", "must be an integer from 0 to 16384"),
        ({"n": 0}, 400, "n", "n is 0"),
        ({"n": 100, "prompt": ["a", "b"]}, 400, "n", "more than 128 texts"),
        ({"n": 5, "max_tokens": 16_384}, 400, "max_tokens", "more than 65536 tokens in all"),
        ({"temperature": -1}, 400, "temperature", "must be a number from 0 to 2"),
        ({"temperature": True}, 400, "temperature", "must be a number"),
        ({"top_p": 0}, 400, "top_p", "top_p is 0"),
        ({"logprobs": 21}, 400, "logprobs", "from 0 to 20"),
        ({"stop": ""}, 400, "stop", "not empty"),
        ({"stop": ["a"] * 5}, 400, "stop", "at most 4"),
        ({"prompt": []}, 400, "prompt", "must be a text"),
        ({"prompt": [5, 4000]}, 400, "prompt", "the id 4000"),
        ({"prompt": "a " * 40, "echo": True, "logprobs": 1}, 400, "prompt", "can score at most 24 at once"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty", "must be 0"),
        ({"best_of": 4}, 400, "best_of", "must be 1"),
        ({"suffix": "end"}, 400, "suffix", "suffix is 'end'"),
        ({"grammar": "x"}, 400, "grammar", "does not support grammar"),
        ({"stream_options": {"usage": 1}}, 400, "stream_options", "include_usage"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client, fields, status, param, words):
    answer = client.post("/v1/completions", json={"model": "r", "prompt": PROMPT, **fields})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")


@pytest.mark.parametrize(("method", "path", "status"), [
    ("POST", "/completions", 404), ("POST", "/v1/responses", 404), ("GET", "/v1/completions", 405),
])  # fmt: skip
def test_an_address_that_is_none_is_told_with_those_there_are(client, method, path, status):
    answer = client.request(method, path)
    assert answer.status_code == status
    message = answer.json()["error"]["message"]
    assert message.startswith(f"there is no {method} {path} here: the API is GET /v1/models, POST /v1/completions, ")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"model": NaN}', b'{"model": "r", "model": "r"}', b"\xff", b"[" * 9999]
)
def test_a_body_that_is_no_object_is_refused(client, body):
    answer = client.post("/v1/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_the_defaults_of_what_is_not_supported_are_taken(complete):
    usual = {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "best_of": 1, "suffix": None}
    plain = complete(PROMPT, max_tokens=5, seed=1)
    assert complete(PROMPT, max_tokens=5, seed=1, user="me", **usual)["choices"] == plain["choices"]


def test_only_the_runs_that_were_named_are_served(root):
    with client_of(root, served=("words",)) as client:
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["words"]
        assert client.post("/v1/completions", json={"model": "r", "prompt": PROMPT}).status_code == 404
