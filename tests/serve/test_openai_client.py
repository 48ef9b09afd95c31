"""OpenAI's own Python client understands the server's answers."""

import pytest

from tests.serve.served import listening, serving

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def openai():
    return pytest.importorskip("openai", reason="needs OpenAI's client: pip install 'hipgpt[peers]'")


@pytest.fixture(scope="module")
def client(openai, root):
    with serving(root, token="secret") as (_, app), listening(app) as address:
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0)


def test_it_lists_the_models(client):
    assert [model.id for model in client.models.list()] == ["chars", "r", "talks", "words"]
    assert client.models.retrieve("r").owned_by == "hipgpt"


def test_it_reads_a_completion_whole_and_as_a_stream(client):
    fields = {"model": "r", "prompt": "the cat", "max_tokens": 12, "seed": 1, "n": 2, "logprobs": 2, "stop": "zzz"}
    whole = client.completions.create(**fields)
    assert whole.usage.completion_tokens == 24
    assert len(whole.choices[0].logprobs.tokens) == 12
    texts = ["", ""]
    for event in client.completions.create(**fields, stream=True, stream_options={"include_usage": True}):
        for choice in event.choices:
            texts[choice.index] += choice.text
        usage = event.usage
    assert texts == [choice.text for choice in whole.choices]
    assert usage == whole.usage


def test_it_reads_a_chat_whole_and_as_a_stream(client):
    fields = {"model": "talks", "messages": [{"role": "user", "content": "the cat"}], "seed": 1, "max_tokens": 9}
    whole = client.chat.completions.create(**fields, logprobs=True, top_logprobs=2)
    assert whole.choices[0].message.role == "assistant"
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
    events = client.chat.completions.create(**fields, stream=True)
    assert "".join(event.choices[0].delta.content or "" for event in events) == whole.choices[0].message.content


def test_each_mistake_raises_openais_exception_for_it(client, openai):
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.completions.create(model="other", prompt="the cat")
    with pytest.raises(openai.BadRequestError, match="best_of is 3") as refused:
        client.completions.create(model="r", prompt="the cat", best_of=3)
    assert refused.value.param == "best_of"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def test_own_fields_go_through_it(client):
    (first, second) = (
        client.completions.create(model="r", prompt="the", seed=seed, extra_body={"top_k": 1}).choices[0].text
        for seed in (1, 2)
    )
    assert first == second, "the likeliest token is the only one left"
