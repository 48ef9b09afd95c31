"""The engine behind the API: places, the queue, clients that go away, new checkpoints, the end."""

import asyncio
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress

import pytest

from gpt import checkpoint
from gpt.config import SamplingConfig
from gpt.decoder import Request, Stream
from gpt.errors import UserError
from gpt.ops.cpu.operations import CpuOps
from gpt.run import Run
from gpt.serve import engine as engine_module
from gpt.serve import messages, outbox
from gpt.serve import model as model_module
from gpt.serve.engine import Engine
from gpt.serve.messages import End, Text
from gpt.serve.outbox import Outbox
from tests.serve.served import Front, asking, client_of, running, serving, until
from tests.support.pretrained import saved_run


def request(num_tokens: int, seed: int = 0) -> Request:
    return Request([5, 6], num_tokens, SamplingConfig(), -1, Stream(seed), window=24)


def engine_of(front: Front, places: int = 1, **options) -> Engine:
    return Engine(CpuOps(threads=1), front.channel, places, **options)


def ids(updates) -> list[int]:
    return [id for update in updates for id in update.ids]


@asynccontextmanager
async def lifespan(app):
    """An app from its startup to its shutdown."""
    started, ended, asked = asyncio.Event(), asyncio.Event(), iter(("startup", "shutdown"))

    async def receive():
        if (what := next(asked)) == "shutdown":
            await ended.wait()
        return {"type": f"lifespan.{what}"}

    async def send(message):
        started.set()

    life = asyncio.ensure_future(app({"type": "lifespan", "state": {}}, receive, send))
    await started.wait()
    yield
    ended.set()
    await life


async def leave(engine, app, body: dict, parts: int) -> bool:
    """Ask for texts, and go away after so many parts of the answer. Returns whether the engine soon has no work."""
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
    async with lifespan(app):
        await asyncio.wait_for(app(scope, receive, send), 30)
        return await asyncio.to_thread(until, lambda: not engine.has_work)


@pytest.mark.parametrize(("streams", "parts"), [(True, 3), (True, 0), (False, 0)])
def test_a_client_that_goes_away_frees_its_places(root, streams, parts):
    """Its texts would take a minute, and all of the places."""
    body = {"model": "r", "prompt": "a", "max_tokens": 16_384, "n": 4, "stream": streams}
    with serving(root) as (engine, app):
        assert asyncio.run(leave(engine, app, body, parts))


def test_a_text_that_takes_too_long_ends_with_an_error(root, monkeypatch):
    monkeypatch.setattr(model_module, "LONGEST", 0.0)
    front = Front()
    with running(engine_of(front)):
        front.write(front.load(Run("r", root)), request(10_000))
        *_, last = front.updates()
    assert last.end.error.status == 504


def test_a_text_that_nobody_wants_any_more_gives_its_place_to_the_next(root):
    front = Front()
    with running(engine_of(front)):
        model = front.load(Run("r", root))
        front.write(model, request(16_384), request(5))
        next(front.updates(0))
        front.send(messages.Cancel(model.number, [0]))
        assert len(ids(front.updates(1))) == 5


def test_texts_of_a_model_that_is_not_in_memory_any_more_end_with_an_error(root):
    front = Front()
    with running(engine_of(front)):
        model = front.load(Run("r", root))
        front.write(model._replace(number=model.number + 1), request(5))
        *_, last = front.updates()
    assert last.end.error.code == "model_replaced"


def test_at_the_end_texts_with_a_place_may_be_completed_and_others_are_told(root):
    front = Front()
    with running(engine_of(front)) as ending:
        model = front.load(Run("r", root))
        front.write(model, request(300))
        written = [next(front.updates())]
        ending.end(seconds=600)
        while not isinstance(message := front.hear(), messages.Ending):
            written += message
        front.write(model, request(300), number=1)
        written += [update for update in front.hear_until_done() if update.number == 0]
    assert len(ids(written)) == 300
    assert written[-1].end == End("length")


def test_texts_that_are_not_complete_in_time_are_told_of_the_end(root):
    front = Front()
    with running(engine_of(front)) as ending:
        front.write(front.load(Run("r", root)), request(16_384))
        next(front.updates())
        ending.end(seconds=0)
        assert front.hear(messages.Done).error.code == "server_ending"


def test_something_unforeseen_is_told_and_raised(root, monkeypatch):
    front = Front()
    failing = engine_of(front)
    failing.load(Run("r", root))
    front.write(front.hear(messages.Loaded).model, request(5))
    monkeypatch.setattr(model_module.Model, "step", lambda model, admits: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.run()
    assert front.hear(messages.Done).error.status == 500


def test_a_model_that_has_diverged_says_so_and_others_go_on(tmp_path, root):
    saved = saved_run(tmp_path)
    saved_run(tmp_path, name="sound")
    weights = {name: tensor * 1e30 for name, tensor in saved.weights().items()}
    checkpoint.save_best(saved.run, 3, saved.model_config, saved.train_config, weights, val_loss=1.0)
    checkpoint.save_best(
        Run("sound", tmp_path), 3, saved.model_config, saved.train_config, dict(saved.weights()), val_loss=1.0
    )
    with client_of(tmp_path, best=True) as client:
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
    with client_of(tmp_path) as client:
        answer = client.post("/v1/completions", json={"model": "r", "prompt": "the"})
        log = run.metrics_path
        log.mkdir()
        unread = client.get("/api/runs/r/log")
    assert answer.status_code == 503
    assert answer.json()["error"]["message"].startswith("r/tokenizer.json is not"), "no path of this machine"
    assert unread.json()["error"]["message"].startswith("cannot read r/metrics.jsonl: ")


# ---- new checkpoints ----------------------------------------------------------------------------------------------


class SlowTerminal(list):
    """The lines that the user has got: whoever wrote one waits for a while, and requests come meanwhile."""

    def report(self, line: str) -> None:
        self.append(line)
        time.sleep(0.3)


def trained_on(run: Run, step: int) -> None:
    """Give a run a checkpoint of a later step, with other weights."""
    saved = checkpoint.load(run)
    weights = {name: tensor[::-1] if tensor.ndim == 1 else tensor * 0.5 for name, tensor in saved.weights().items()}
    optimizer, counters = saved.optimizer()
    checkpoint.save(run, step, saved.model_config, saved.train_config, weights, optimizer, counters)


@pytest.mark.parametrize("reload", [True, False])
def test_a_new_checkpoint_is_used_if_that_was_asked_for(tmp_path, monkeypatch, reload):
    monkeypatch.setattr(engine_module, "LOOK", 0.05)
    run, said = saved_run(tmp_path).run, SlowTerminal()
    fields = {"model": "r", "prompt": "the", "seed": 1, "max_tokens": 20}
    with client_of(tmp_path, reload=reload, report=said.report) as client:
        before = client.post("/v1/completions", json=fields).json()
        trained_on(run, 4)
        if reload:
            assert until(lambda: any("now at step 4" in line for line in said))
        else:
            time.sleep(0.5)
        after = client.post("/v1/completions", json=fields).json()
    assert before["system_fingerprint"] == "r-step3"
    assert after["system_fingerprint"] == ("r-step4" if reload else "r-step3")
    assert (after["choices"] != before["choices"]) == reload
    assert any("now at step 4" in line for line in said) == reload


def test_a_run_that_has_only_its_best_weights_yet_is_asked_for_these(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_module, "LOOK", 0.05)
    saved, run = saved_run(tmp_path, name="other"), Run("r", tmp_path)
    run.path.mkdir()
    shutil.copy(saved.run.tokenizer_path, run.tokenizer_path)
    checkpoint.save_best(run, 2, saved.model_config, saved.train_config, dict(saved.weights()), val_loss=1.0)
    said = SlowTerminal()
    with client_of(tmp_path, reload=True, report=said.report) as client:
        fields = {"model": "r", "prompt": "the", "max_tokens": 1}
        assert client.post("/v1/completions", json=fields).json()["system_fingerprint"] == "r-step2"
        optimizer, counters = saved.optimizer()
        checkpoint.save(run, 4, saved.model_config, saved.train_config, dict(saved.weights()), optimizer, counters)
        assert until(lambda: "Run r: now at step 4" in said)
        assert client.post("/v1/completions", json=fields).json()["system_fingerprint"] == "r-step4"


def test_a_text_ends_with_the_weights_that_it_began_with(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_module, "LOOK", 0.05)
    run, step, goes_on = saved_run(tmp_path).run, model_module.Model.step, threading.Event()

    def patient_step(model, admits):
        """A step, but a text that has begun goes on only once the other one has been asked for."""
        if not model.is_busy or goes_on.is_set():
            step(model, admits)

    monkeypatch.setattr(model_module.Model, "step", patient_step)

    def texts(trains: bool) -> tuple[list[int], list[int]]:
        front = Front()
        engine = engine_of(front, places=2, reload=True)
        goes_on.clear()
        with running(engine):
            model = front.load(run)
            front.write(model, request(300))
            first = next(front.updates())
            if trains:
                trained_on(run, 4)
                assert until(lambda: engine._outdated), "it has seen the new checkpoint"
            front.write(model, request(20), number=1)
            assert until(lambda: engine._models["r"]._waiting)
            goes_on.set()
            both = {0: first.ids, 1: []}
            ends = 0
            while ends < 2:
                for update in front.hear(list):
                    both[update.number] += update.ids
                    ends += update.end is not None
            return both[0], both[1]

    expected, got = texts(trains=False), texts(trains=True)
    assert got[0] == expected[0]
    assert got[1] != expected[1]


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_names_the_checkpoint_that_wrote_it_though_an_older_one_was_there_when_it_was_asked_for(
    tmp_path, monkeypatch, stream
):
    monkeypatch.setattr(engine_module, "LOOK", 0.05)
    run, step = saved_run(tmp_path).run, model_module.Model.step

    def patient_step(model, admits):
        """A step, but a text that has begun goes on only when there is a newer checkpoint, and no other may begin."""
        if not model.is_busy or not admits:
            step(model, admits)

    monkeypatch.setattr(model_module.Model, "step", patient_step)

    def fingerprint(max_tokens: int) -> str:
        fields = {"model": "r", "prompt": "the", "max_tokens": max_tokens, "seed": 1, "stream": stream}
        said = client.post("/v1/completions", json=fields).text
        return json.loads(said.partition("\n")[0].removeprefix("data: "))["system_fingerprint"]

    with (
        serving(tmp_path, places=1, reload=True) as (engine, app),
        asking(app) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        first = pool.submit(fingerprint, 300)
        assert until(lambda: engine.has_work)
        second = pool.submit(fingerprint, 1)
        assert until(lambda: engine._models["r"]._waiting)
        trained_on(run, 4)
        assert (first.result(), second.result()) == ("r-step3", "r-step4")


def test_a_run_that_was_made_anew_gets_a_new_model(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_module, "LOOK", 0.05)
    run = saved_run(tmp_path).run
    fields = {"model": "r", "prompt": "the", "seed": 1}
    said = SlowTerminal()
    with client_of(tmp_path, reload=True, report=said.report) as client:
        client.post("/v1/completions", json=fields)
        for path in run.path.iterdir():
            path.unlink()
        with suppress(UserError):
            run.path.rmdir()
        saved_run(tmp_path, embed_dim=24)
        assert until(lambda: "Run r: made anew" in said)
        assert client.post("/v1/completions", json=fields).status_code == 200


def test_the_first_token_and_the_end_are_told_at_once_and_the_tokens_between_them_together(monkeypatch):
    """The clock stands still, but for one moment."""
    now = [100.0]
    monkeypatch.setattr(outbox.time, "monotonic", lambda: now[0])
    sent = []

    class Sent:
        def send(self, message):
            sent.append([(update.number, update.ids, update.end) for update in message])

    box, first, second = Outbox(Sent()), Text(1, request(9)), Text(2, request(9))

    def step(*tokens):
        for text, token in tokens:
            box.end(text, token) if isinstance(token, End) else box.token(text, token)
        box.tell()
        told = sent[:]
        sent.clear()
        return told

    assert step((first, 10)) == [[(1, [10], None)]]
    assert step((first, 11)) == []
    assert step((first, 12), (second, 20)) == [[(2, [20], None)]]
    assert step((first, 13), (second, 21)) == []
    now[0] += outbox.PACE
    assert step((first, 14), (second, 22)) == [[(1, [11, 12, 13, 14], None), (2, [21, 22], None)]]
    assert step((first, 15), (second, 23)) == []
    assert step((first, End("length"))) == [[(1, [15], End("length"))]]
