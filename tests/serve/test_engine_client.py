"""The engine as the front knows it: what is refused, and what becomes of clients that do not read."""

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest

from gpt.config import ModelConfig, SamplingConfig
from gpt.decoder import Request, Stream
from gpt.run import Run
from gpt.serve import engine_client, messages
from gpt.serve.channel import Channel
from gpt.serve.engine_client import MOST_WAITING, EngineClient
from gpt.serve.errors import ENDING, RequestError
from gpt.serve.messages import End, ModelInfo, Update
from tests.support.pretrained import tokenizer

TEXT = (Request([5], 9, SamplingConfig(), -1, Stream(0), window=24), None, False)
MODEL = ModelInfo(7, Run("r"), 3, ModelConfig(vocab_size=300), tokenizer())


@asynccontextmanager
async def connected():
    """A client, and the engine's end of its channel. The engine has begun."""
    ours, theirs = socket.socketpair()
    channel, lost = Channel(ours), []
    client = EngineClient(theirs, lost.append)
    channel.send(messages.Begin("a device"))
    async with client.connected():
        client.lost = lost
        yield client, channel


async def settled() -> None:
    """Let what was sent be heard."""
    await asyncio.sleep(0.05)


def test_a_queue_that_is_full_refuses_and_keeps_what_it_has():
    async def fill() -> None:
        async with connected() as (client, channel):
            listener, numbers = client.submit(MODEL, [TEXT] * MOST_WAITING)
            with pytest.raises(RequestError, match="256 texts wait") as refused:
                client.submit(MODEL, [TEXT])
            assert refused.value.status == 429
            assert "Retry-After" in refused.value.headers
            channel.send([Update(numbers[0], [1], [])])
            assert [update.ids for update in await listener.arrived()] == [[1]]
            client.submit(MODEL, [TEXT])
            (write, one_more) = channel.received(1)
            assert [len(each.texts) for each in (write, one_more)] == [MOST_WAITING, 1]

    asyncio.run(fill())


def test_a_client_that_does_not_read_its_tokens_loses_its_place(monkeypatch):
    monkeypatch.setattr(engine_client, "MOST_UNREAD", 50)

    async def ignore() -> None:
        async with connected() as (client, channel):
            listener, (number,) = client.submit(MODEL, [TEXT])
            channel.received(1)
            for _ in range(3):
                channel.send([Update(number, [1] * 20, [])])
            await settled()
            assert channel.received(1) == [messages.Cancel(7, [number])]
            (update,) = await listener.arrived()
            assert len(update.ids) == 60
            assert update.end.error.code == "client_too_slow"

    asyncio.run(ignore())


def test_a_model_is_asked_for_once_and_known_until_it_is_forgotten():
    async def ask() -> None:
        async with connected() as (client, channel):
            asked = [asyncio.ensure_future(client.model(MODEL.run)) for _ in range(3)]
            await settled()
            assert [type(message) for message in channel.received(1)] == [messages.Load]
            channel.send(messages.Loaded(MODEL))
            assert {(await each).number for each in asked} == {7}
            channel.send(messages.Loaded(MODEL._replace(step_number=4)))
            await settled()
            assert (await client.model(MODEL.run)).step_number == 4
            channel.send(messages.Forgotten("r"))
            await settled()
            again = asyncio.ensure_future(client.model(MODEL.run))
            await settled()
            channel.send(messages.Refused("r", RequestError(503, "too large")))
            with pytest.raises(RequestError, match="too large"):
                await again

    asyncio.run(ask())


@pytest.mark.parametrize("says_so", [True, False])
def test_the_engines_end_ends_everything(says_so):
    async def end() -> None:
        async with connected() as (client, channel):
            listener, _ = client.submit(MODEL, [TEXT, TEXT])
            loading = asyncio.ensure_future(client.model(Run("other")))
            await settled()
            if says_so:
                channel.send(messages.Ending())
                await settled()
                with pytest.raises(RequestError, match="is ending"):
                    client.submit(MODEL, [TEXT])
                with pytest.raises(RequestError, match="is ending"):
                    await client.model(MODEL.run)
                channel.send(messages.Done(ENDING))
            else:
                channel.close()
            assert [update.end.error.status for update in await listener.arrived()] == [503, 503]
            with pytest.raises(RequestError, match="is ending"):
                await loading
            assert client.lost == [says_so]

    asyncio.run(end())


def test_what_comes_of_a_text_that_was_cancelled_is_not_missed():
    async def cancel() -> None:
        async with connected() as (client, channel):
            listener, (first, second) = client.submit(MODEL, [TEXT, TEXT])
            client.cancel([first])
            client.cancel([first])
            channel.send([Update(first, [1], []), Update(second, [2], [], End("length"))])
            await settled()
            assert {update.number: update.ids for update in await listener.arrived()} == {first: [], second: [2]}
            client.cancel([first, second])
            await settled()
            assert len(channel.received(1)) == 2, "to write, and to cancel once"

    asyncio.run(cancel())
