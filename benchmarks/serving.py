"""Many clients at once: how fast `hipgpt serve` answers them, beside the batched decoder by itself.

    python benchmarks/serving.py checkpoints/first --clients 64 --seconds 25

First the decoder writes texts with a place for each client, and nothing around it. Then a server is started, and each
client asks it for one streamed text after the other: for one text to warm it up, and then for the time given. Prompts
and sampling are the same. The clients are in processes of their own, one for every four cores.

The report has tokens per second of both (of the server's texts only those that are complete), and the times to the
first token and from event to event, as clients see them. An event has the tokens of 20 ms. For each process it has the
share of a core that it used, and its memory after a tenth of the time and at the end.
"""

import asyncio
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import psutil

from gpt import checkpoint
from gpt.config import SamplingConfig
from gpt.decoder import Decoder, Request, Stream
from gpt.generate import load_model
from gpt.ops import select
from gpt.run import Run
from gpt.tokenizer import Tokenizer

PROMPTS = ("On a bright morning", "The", "Once upon a time there was", "She said that")
SAMPLING = SamplingConfig(temperature=0.8, top_k=50, top_p=0.9, repetition_penalty=1.1)
ALONE_SECONDS = 10.0  # time of the decoder by itself
MOST_PROCESSES = 4  # of clients


@dataclass
class Seen:
    """The times in seconds that clients measured, and the errors that they got."""

    first: list[float] = field(default_factory=list)  # from the request to the first token
    between: list[float] = field(default_factory=list)  # from one event to the next
    tokens: int = 0
    texts: int = 0
    errors: list[str] = field(default_factory=list)

    def __add__(self, other: "Seen") -> "Seen":
        return Seen(
            self.first + other.first, self.between + other.between, self.tokens + other.tokens,
            self.texts + other.texts, self.errors + other.errors,
        )  # fmt: skip


@dataclass
class Used:
    """The CPU time of a process, in seconds, and its memory, in bytes, after a tenth of the time and at the end."""

    name: str
    process: psutil.Process
    cpu: float = 0.0
    early: int = 0
    late: int = 0

    def begin(self) -> None:
        self.cpu = -sum(self.process.cpu_times()[:2])

    def end(self) -> None:
        self.cpu += sum(self.process.cpu_times()[:2])
        self.late = self.process.memory_info().rss


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--clients", default=64, show_default=True, help="Clients that ask at the same time; 64 at most.")
@click.option("--seconds", default=25.0, show_default=True, help="Time for which they ask.")
@click.option("--num-tokens", default=100, show_default=True, help="Tokens of each text.")
@click.option("--device", default="auto", show_default=True, help="Device, as in hipgpt serve.")
def main(run: Path, clients: int, seconds: float, num_tokens: int, device: str) -> None:
    """Let clients ask for texts of a RUN's model."""
    decoder = alone(Run.at(run.resolve()), clients, num_tokens, device)
    click.echo(f"decoder alone: {decoder:,.0f} tokens/s with {clients} places")
    command = [
        sys.executable, "-m", "gpt.cli", "serve", "--runs-dir", str(run.resolve().parent), "--run-name", run.name,
        "--port", "0", "--places", str(clients), "--device", device,
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        try:
            port = next(int(match[1]) for line in server.stdout if (match := re.search(r"API: .*:(\d+)/v1", line)))
            engine = psutil.Process(server.pid)
            used = [Used("engine", engine), *(Used("front", child) for child in engine.children())]
            seen = load(port, run.name, clients, seconds, num_tokens, used)
        finally:
            server.terminate()
    rate = seen.tokens / seconds
    click.echo(
        f"server:        {rate:,.0f} tokens/s ({rate / decoder:.0%}), {seen.texts} texts, {len(seen.errors)} errors"
    )
    for name, times in (("first token", seen.first), ("next event", seen.between)):
        low, high = np.percentile(times, [50, 99]) * 1e3
        click.echo(f"{name + ':':<15}{low:,.1f} ms (p50), {high:,.1f} ms (p99)")
    for each in used:
        memory = f"{each.early / 2**20:,.0f} MiB early, {each.late / 2**20:,.0f} MiB at the end"
        click.echo(f"{each.name + ':':<15}{each.cpu / seconds:.0%} of a core, {memory}")
    for error in seen.errors[:5]:
        click.echo(error)


def alone(run: Run, places: int, num_tokens: int, device: str) -> float:
    """Tokens per second of a decoder whose places are always taken."""
    model = load_model(checkpoint.load(run), select(device), places)
    tokenizer = Tokenizer.load(run.tokenizer_path)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    decoder, count, began, begun = Decoder(model, places), 0, 0.0, 0
    while not began or time.perf_counter() - began < ALONE_SECONDS:
        while decoder.free:
            stream, begun = Stream(begun), begun + 1
            prompt = prompts[begun % len(prompts)]
            decoder.join(Request(prompt, num_tokens, SAMPLING, -1, stream, model.config.max_seq_len))
        count += sum(id is not None for _, id in decoder.step())
        if not began and begun > places:  # all places have been filled once: it is warm
            began, count = time.perf_counter(), 0
    return count / (time.perf_counter() - began)


def load(port: int, model: str, clients: int, seconds: float, num_tokens: int, used: list[Used]) -> Seen:
    """Run clients that ask for texts, for `seconds` seconds. Returns their measurements.

    Fills in `used`, the processes to watch, and adds the clients' processes to it.
    """
    count = max(1, min(MOST_PROCESSES, (os.cpu_count() or 1) // 4, clients))
    shares = [range(clients)[first::count] for first in range(count)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context) as pool:
        list(pool.map(asked, [(port, model, share, 0.0, num_tokens) for share in shares]))  # all is warm
        used += [Used("clients", child) for child in psutil.Process().children() if child.pid in pool._processes]
        for each in used:
            each.begin()
        began = time.perf_counter()
        futures = [pool.submit(asked, (port, model, share, seconds, num_tokens)) for share in shares]
        time.sleep(seconds / 10)
        for each in used:
            each.early = each.process.memory_info().rss
        time.sleep(max(0.0, began + seconds - time.perf_counter()))
        for each in used:
            each.end()
        seen = Seen()
        for future in futures:
            seen += future.result()
    return seen


def asked(task: tuple[int, str, Sequence[int], float, int]) -> Seen:
    """Let the clients with the numbers of the task ask for texts for its seconds, each for at least one."""
    port, model, numbers, seconds, num_tokens = task

    async def together() -> Seen:
        seen, ends = Seen(), time.perf_counter() + seconds
        await asyncio.gather(*(client(number, port, model, num_tokens, ends, seen) for number in numbers))
        return seen

    return asyncio.run(together())


async def client(number: int, port: int, model: str, num_tokens: int, ends: float, seen: Seen) -> None:
    """Ask for one text after the other until the time is over; tokens that come later do not count."""
    asks = 0
    while not asks or time.perf_counter() < ends:
        body = {
            "model": model, "prompt": PROMPTS[(number + asks) % len(PROMPTS)], "max_tokens": num_tokens, "stream": True,
            "seed": 1000 * number + asks, "temperature": SAMPLING.temperature, "top_k": SAMPLING.top_k,
            "top_p": SAMPLING.top_p, "repetition_penalty": SAMPLING.penalty,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        asks += 1
        try:
            await one_text(port, json.dumps(body).encode(), num_tokens, ends, seen)
        except (OSError, ValueError) as error:
            seen.errors.append(repr(error))


async def one_text(port: int, body: bytes, num_tokens: int, ends: float, seen: Seen) -> None:
    """Ask for a text and read its events as they come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = last = time.perf_counter()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise ValueError(f"{status!r}")
    events, is_done = 0, False
    async for line in reader:
        if line.startswith(b"data: [DONE]"):
            is_done = True
        elif line.startswith(b"data: "):
            event, now = json.loads(line[6:]), time.perf_counter()
            if "error" in event:
                raise ValueError(str(event))
            if event["choices"] and now < ends:
                if events:
                    seen.between.append(now - last)
                else:
                    seen.first.append(now - began)
                events += 1
            elif event["usage"] and now < ends:
                seen.texts += 1
                seen.tokens += event["usage"]["completion_tokens"]
            last = now
    writer.close()
    if not is_done:
        raise ValueError("the stream broke off")


if __name__ == "__main__":
    main()
