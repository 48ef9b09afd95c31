"""The engine behind the API: places, the queue, clients that go away, new checkpoints, the end."""

import asyncio
import json
import time
from contextlib import suppress

import pytest

from gpt import checkpoint
from gpt.config import SamplingConfig
from gpt.decoder import Request, Stream
from gpt.errors import UserError
from gpt.ops.cpu.operations import CpuOps
from gpt.run import Run
from gpt.serve import engine as engine_module
from gpt.serve import listening
from gpt.serve.engine import MOST_WAITING, Engine
from gpt.serve.errors import RequestError
from gpt.serve.listening import End, Listener, Text, Token
from tests.serve.served import app_of, client_of, running
from tests.support.pretrained import saved_run


def request(num_tokens: int, seed: int = 0) -> Request:
    return Request([5, 6], num_tokens, SamplingConfig(), -1, Stream(seed), window=24)


async def all_of(listener: Listener, count: int) -> list[Token | End]:
    """What arrives until so many texts have ended."""
    got = []
    while sum(isinstance(what, End) for what in got) < count:
        got += [what for _, what in await listener.arrived()]
    return got


async def ask(app, body: dict, parts: int) -> list[bytes]:
    """The first parts of an answer's body, from a client that goes away once it has them. All parts, if fewer."""
    gone, got, messages = asyncio.Event(), [], [{"type": "http.request", "body": json.dumps(body).encode()}]

    async def receive():
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        got.append(message.get("body", b""))
        if len(got) > parts:
            gone.set()

    scope = {
        "type": "http", "method": "POST", "path": "/v1/completions", "headers": [(b"host", b"localhost")],
        "http_version": "1.1", "scheme": "http", "root_path": "", "query_string": b"",
    }  # fmt: skip
    if parts == 0:
        asyncio.get_running_loop().call_later(0 if body["stream"] else 0.2, gone.set)
    await asyncio.wait_for(app(scope, receive, send), 30)
    return got


@pytest.mark.parametrize(("streams", "parts"), [(True, 3), (True, 0), (False, 0)])
def test_a_client_that_goes_away_frees_its_places(engine, root, streams, parts):
    """Its texts would take a minute, and all of the places."""
    app = app_of(engine, root)
    body = {"model": "r", "prompt": "a", "max_tokens": 16_384, "n": 4, "stream": streams}
    asyncio.run(ask(app, body, parts))
    model = engine.model(Run("r", root)).result()
    deadline = time.monotonic() + 5
    while model.has_work and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not model.has_work


def test_a_queue_that_is_full_refuses_and_keeps_what_it_has(root):
    """The engine's thread does not run yet, so nothing leaves the queue."""
    idle = Engine(CpuOps(threads=1), places=2)
    model = idle.load(Run("r", root))

    async def fill() -> list[Token | End]:
        listener = Listener()
        idle.submit(model, [Text(listener, request(1)) for _ in range(MOST_WAITING)])
        with pytest.raises(RequestError, match="256 texts wait") as refused:
            idle.submit(model, [Text(listener, request(1))])
        assert refused.value.status == 429
        assert "Retry-After" in refused.value.headers
        with running(idle):
            return await all_of(listener, MOST_WAITING)

    assert asyncio.run(fill()).count(End("length")) == MOST_WAITING


def test_a_text_that_takes_too_long_ends_with_an_error(engine, root, monkeypatch):
    monkeypatch.setattr(listening, "LONGEST", 0.0)
    model = engine.model(Run("r", root)).result()

    async def late() -> list[Token | End]:
        listener = Listener()
        engine.submit(model, [Text(listener, request(10_000))])
        return await all_of(listener, 1)

    *_, end = asyncio.run(late())
    assert end.error.status == 504


def test_a_client_that_does_not_read_its_tokens_loses_its_place(root, monkeypatch):
    monkeypatch.setattr(listening, "MOST_UNREAD", 50)

    async def ignore() -> list[Token | End]:
        listener = Listener()
        with running(Engine(CpuOps(threads=1), places=1)) as engine:
            model = await asyncio.wrap_future(engine.model(Run("r", root)))
            text = Text(listener, request(16_384))
            engine.submit(model, [text])
            while text.cancelled is None:
                await asyncio.sleep(0.01)
            return await all_of(listener, 1)

    *tokens, end = asyncio.run(ignore())
    assert 50 < len(tokens) < 16_384
    assert end.error.code == "client_too_slow"


def test_at_the_end_texts_with_a_place_may_be_completed_and_others_are_told(root):
    ending = Engine(CpuOps(threads=1), places=1)

    async def end() -> list[Token | End]:
        listener = Listener()
        with running(ending):
            model = await asyncio.wrap_future(ending.model(Run("r", root)))
            ending.submit(model, [Text(listener, request(300))])
            first = await listener.arrived()
            ending.submit(model, [Text(listener, request(300))])
            ending.end(seconds=20)
            with pytest.raises(RequestError, match="is ending"):
                ending.submit(model, [Text(listener, request(1))])
            return [*(what for _, what in first), *(await all_of(listener, 2))]

    got = asyncio.run(end())
    assert sum(isinstance(what, Token) for what in got) == 300
    ends = [what for what in got if isinstance(what, End)]
    assert sorted(each.error.status if each.error else 0 for each in ends) == [0, 503]


def test_texts_that_are_not_complete_in_time_are_told_of_the_end(root):
    ending = Engine(CpuOps(threads=1), places=1)

    async def end() -> list[Token | End]:
        listener = Listener()
        with running(ending):
            ending.submit(await asyncio.wrap_future(ending.model(Run("r", root))), [Text(listener, request(16_384))])
            await listener.arrived()
            ending.end(seconds=0)
            return await all_of(listener, 1)

    assert asyncio.run(end())[-1].error.code == "server_ending"


def test_something_unforeseen_ends_all_texts_with_an_error_and_is_raised(root, monkeypatch):
    failing = Engine(CpuOps(threads=1), places=2)
    model = failing.load(Run("r", root))
    monkeypatch.setattr(model, "step", lambda admits: 1 / 0)

    async def fail() -> list[Token | End]:
        listener = Listener()
        failing.submit(model, [Text(listener, request(5))])
        with pytest.raises(ZeroDivisionError):
            failing.run()
        return await all_of(listener, 1)

    assert [what.error.status for what in asyncio.run(fail())] == [500]


def test_a_model_that_has_diverged_says_so_and_others_go_on(tmp_path, root):
    saved = saved_run(tmp_path)
    saved_run(tmp_path, name="sound")
    weights = {name: tensor * 1e30 for name, tensor in saved.weights().items()}
    checkpoint.save_best(saved.run, 3, saved.model_config, saved.train_config, weights, val_loss=1.0)
    checkpoint.save_best(
        Run("sound", tmp_path), 3, saved.model_config, saved.train_config, dict(saved.weights()), val_loss=1.0
    )
    with running(Engine(CpuOps(threads=1), places=2, best=True)) as engine, client_of(engine, tmp_path) as client:
        for _ in range(2):
            answer = client.post("/v1/completions", json={"model": "r", "prompt": "the"})
            assert answer.status_code == 500
            assert "not finite" in answer.json()["error"]["message"]
        scoring = {"model": "r", "prompt": "the cat", "echo": True, "logprobs": 0, "max_tokens": 0}
        assert client.post("/v1/completions", json=scoring).status_code == 500
        assert client.post("/v1/completions", json={"model": "sound", "prompt": "the"}).status_code == 200


def test_a_run_whose_files_are_damaged_is_told_by_name(tmp_path):
    run = saved_run(tmp_path).run
    run.tokenizer_path.write_text("{}")
    with running(Engine(CpuOps(threads=1), places=2)) as engine, client_of(engine, tmp_path) as client:
        answer = client.post("/v1/completions", json={"model": "r", "prompt": "the"})
    assert answer.status_code == 503
    assert "tokenizer.json" in answer.json()["error"]["message"]


# ---- new checkpoints ----------------------------------------------------------------------------------------------


def trained_on(run: Run, step: int) -> None:
    """Give a run a checkpoint of a later step, with other weights."""
    saved = checkpoint.load(run)
    weights = {name: tensor[::-1] if tensor.ndim == 1 else tensor * 0.5 for name, tensor in saved.weights().items()}
    optimizer, counters = saved.optimizer()
    checkpoint.save(run, step, saved.model_config, saved.train_config, weights, optimizer, counters)


@pytest.mark.parametrize("reload", [True, False])
def test_a_new_checkpoint_is_used_if_that_was_asked_for(tmp_path, monkeypatch, reload):
    monkeypatch.setattr(engine_module, "LOOK", 0.05)
    run, said = saved_run(tmp_path).run, []
    fields = {"model": "r", "prompt": "the", "seed": 1, "max_tokens": 20}
    following = Engine(CpuOps(threads=1), places=2, reload=reload, report=said.append)
    with running(following), client_of(following, tmp_path) as client:
        before = client.post("/v1/completions", json=fields).json()
        trained_on(run, 4)
        time.sleep(0.5)
        after = client.post("/v1/completions", json=fields).json()
    assert before["system_fingerprint"] == "r-step3"
    assert after["system_fingerprint"] == ("r-step4" if reload else "r-step3")
    assert (after["choices"] != before["choices"]) == reload
    assert any("now at step 4" in line for line in said) == reload


def test_a_text_ends_with_the_weights_that_it_began_with(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_module, "LOOK", 0.05)
    run = saved_run(tmp_path).run

    async def texts(trains: bool) -> tuple[list[Token], list[Token]]:
        first, second = Listener(), Listener()
        with running(Engine(CpuOps(threads=1), places=2, reload=True)) as engine:
            model = await asyncio.wrap_future(engine.model(run))
            engine.submit(model, [Text(first, request(300))])
            got = [what for _, what in await first.arrived()]
            if trains:
                trained_on(run, 4)
                await asyncio.sleep(0.2)
            engine.submit(model, [Text(second, request(20))])
            return [*got, *(await all_of(first, 1))], await all_of(second, 1)

    expected = asyncio.run(texts(trains=False))
    got = asyncio.run(texts(trains=True))
    assert got[0] == expected[0]
    assert got[1] != expected[1]


def test_a_run_that_was_made_anew_gets_a_new_model(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_module, "LOOK", 0.05)
    run = saved_run(tmp_path).run
    fields = {"model": "r", "prompt": "the", "seed": 1}
    with running(Engine(CpuOps(threads=1), places=2, reload=True)) as engine, client_of(engine, tmp_path) as client:
        client.post("/v1/completions", json=fields)
        for path in run.path.iterdir():
            path.unlink()
        with suppress(UserError):
            run.path.rmdir()
        saved_run(tmp_path, embed_dim=24)
        time.sleep(0.5)
        assert client.post("/v1/completions", json=fields).status_code == 200
        assert engine.model(run).result().config.embed_dim == 24


def test_the_first_token_and_the_end_are_told_at_once_and_the_tokens_between_them_together(monkeypatch):
    monkeypatch.setattr(listening, "PACE", 0.2)

    async def told() -> list[tuple[int, float]]:
        listener, messenger, clock = Listener(), listening.Messenger(), asyncio.get_running_loop().time
        text, began, got = Text(listener, request(9)), clock(), []

        async def write():
            for token in range(5):
                messenger.tell([(text, Token(token))])
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            messenger.tell([(text, Token(5))])  # it is time for the four that were held
            await asyncio.sleep(0.01)
            messenger.tell([(text, Token(6))])
            messenger.tell([(text, End("length"))])

        writing = asyncio.ensure_future(write())
        while sum(count for count, _ in got) < 8:
            got.append((len(await listener.arrived()), clock() - began))
        await writing
        return got

    (first, at_once), (others, later), (rest, _) = asyncio.run(told())
    assert (first, others, rest) == (1, 5, 2)
    assert at_once < 0.2 <= later
