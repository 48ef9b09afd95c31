"""Many texts at once: each as if it were alone, whoever comes and goes beside it."""

import gc
import json
import random
import weakref
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest

from gpt.config import ModelConfig, SamplingConfig
from gpt.decoder import Decoder, Request, Stream
from gpt.errors import UserError
from gpt.generate import MOST_SAMPLES, fitting, generate, generate_many
from gpt.model import GPT, KVCache
from gpt.ops.cpu.operations import CpuOps
from gpt.ops.gpu.operations import GpuOps
from gpt.tokenizer import Tokenizer
from tests.support.devices import GPU, executor

TEXT = "the cat sat on the mat . the dog sat on the log .\n" * 20
WINDOW, VOCAB = 16, 61


def model_on(ops, vocab: int = VOCAB) -> GPT:
    """An untrained model with large weights, so that its choices vary."""
    config = ModelConfig(
        vocab_size=vocab, max_seq_len=WINDOW, embed_dim=32, num_heads=2, ff_hidden_dim=48, num_layers=2
    )
    model = GPT(config, ops)
    for name, tensor in named(config):
        ops.copy(tensor * (20 if tensor.ndim == 2 and "wte" not in name else 1), out=model.weights.named[name])
    return model


def named(config: ModelConfig):
    reference = GPT(config, CpuOps(threads=1))
    reference.initialize(seed=5)
    return [(name, tensor.copy()) for name, tensor in reference.weights.named.items()]


def requests(count: int, vocab: int = VOCAB) -> list[Request]:
    """Requests of all kinds: prompts shorter and longer than their windows, several rules, some with an end token."""
    chance = random.Random(3)
    rules = [SamplingConfig(), SamplingConfig(temperature=0), SamplingConfig(temperature=1.5, top_k=0, top_p=1)]
    return [
        Request(
            prompt=[chance.randrange(vocab) for _ in range(chance.randint(1, 2 * WINDOW))],
            num_tokens=chance.randint(1, 40),
            sampling=chance.choice(rules),
            eos_id=chance.choice([-1, 7]),
            stream=Stream(seed=chance.randrange(3), prompt=number, sample=chance.randrange(3)),
            window=chance.choice([1, 5, WINDOW]),
        )
        for number in range(count)
    ]


def alone(model: GPT, request: Request) -> list[int]:
    return list(Decoder(model, places=1).ids(request))


@cache
def texts_alone(count: int) -> list[list[int]]:
    """The ids of each of `requests(count)`, which nothing is written beside."""
    model = model_on(CpuOps(threads=1))
    return [alone(model, request) for request in requests(count)]


# ---- the decoder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps_ahead", [0, 1, 2])
@pytest.mark.parametrize("places", [1, 3, 8])
def test_a_text_does_not_depend_on_who_joins_and_leaves_beside_it(monkeypatch, places, steps_ahead):
    """Requests join free places at random steps. Some leave before their end: they have got the beginning of theirs."""
    monkeypatch.setattr(CpuOps, "steps_ahead", steps_ahead)
    model, chance = model_on(CpuOps(threads=1)), random.Random(places)
    asked, expected = requests(16), texts_alone(16)
    waiting, running, got = list(range(16)), {}, [[] for _ in asked]
    left, decoder = set(), Decoder(model, places)
    while waiting or running:
        while waiting and decoder.free and chance.random() < 0.5:
            number = waiting.pop()
            running[decoder.join(asked[number])] = number
        for sequence, id in decoder.step():
            if id is None:
                running.pop(sequence)
            else:
                got[running[sequence]].append(id)
        if running and chance.random() < 0.03:
            sequence = chance.choice(list(running))
            decoder.leave(sequence)
            left.add(running.pop(sequence))
    assert decoder.free == places
    assert left
    for number, (ids, whole) in enumerate(zip(got, expected, strict=True)):
        assert ids == (whole[: len(ids)] if number in left else whole)


@pytest.mark.parametrize(
    "device",
    [
        GPU,
        pytest.param(partial(executor, "mma"), id="mma"),
        pytest.param(partial(executor, "mfma"), id="mfma", marks=pytest.mark.slow),  # the stream is in parts there
    ],
)
def test_on_a_gpu_a_text_does_not_depend_on_the_others_either(device):
    model = model_on(GpuOps(device(), "bf16"))
    some = [Request([number, 3], 9, SamplingConfig(temperature=1.5), -1, Stream(1, number), 6) for number in range(3)]
    decoder = Decoder(model, places=3)
    got = {decoder.join(request): [] for request in some}
    while decoder.sequences:
        for sequence, id in decoder.step():
            if id is not None:
                got[sequence].append(id)
    assert list(got.values()) == [alone(model, request) for request in some]
    assert len({tuple(ids) for ids in got.values()}) == 3


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("dim", "heads", "ff", "vocab"), [(128, 4, 512, 2000), (96, 3, 400, 301), (30, 2, 44, 37)])
def test_the_bits_of_logits_do_not_depend_on_the_batch_or_on_the_place(threads, dim, heads, ff, vocab):
    """In float32, whose sums depend on the order of their terms."""
    config = ModelConfig(
        vocab_size=vocab, max_seq_len=80, embed_dim=dim, num_heads=heads, ff_hidden_dim=ff, num_layers=2
    )
    model, rng, batch = GPT(config, CpuOps(threads)), np.random.default_rng(0), 19
    model.initialize(seed=1)
    start = rng.integers(0, 79, batch).astype(np.int32)
    cache = KVCache.allocate(config, model.ops, start, np.zeros(1, np.int32))
    cache.keys[:], cache.values[:] = rng.standard_normal((2, *cache.keys.shape))
    ids = rng.integers(0, vocab, batch).astype(np.int32)
    together = model.decode(ids, cache).copy()
    for places in (slice(0, 1), slice(18, 19), slice(3, 10), slice(8, 16)):
        part = KVCache(cache.keys[:, places], cache.values[:, places], start[places], cache.place)
        assert np.array_equal(model.decode(ids[places], part), together[places])


@pytest.mark.parametrize("device", ["cpu", "mma"])
def test_a_decoder_that_nobody_uses_any_more_is_gone_at_once(device):
    """Its cache may be most of a GPU's memory, and Python looks for circles of objects only now and then."""
    model = model_on(CpuOps(threads=1) if device == "cpu" else GpuOps(executor(device), "fp32"))
    gc.collect()
    gc.disable()
    try:
        decoder = Decoder(model, places=2)
        assert len(list(decoder.ids(Request([1, 2], 5, SamplingConfig(), -1, Stream(1), WINDOW)))) == 5
        known = weakref.ref(decoder)
        del decoder
        assert known() is None
    finally:
        gc.enable()


def test_a_sequence_that_leaves_frees_its_place_for_the_next_step():
    model = model_on(CpuOps(threads=1))
    decoder, (first, second, third) = Decoder(model, places=2), requests(3)
    gone, stays = decoder.join(first), decoder.join(second)
    decoder.step()
    with pytest.raises(ValueError, match="all 2 places"):
        decoder.join(third)
    decoder.leave(gone)
    assert decoder.free == 1
    came = decoder.join(third)
    assert came.place == gone.place
    assert {sequence for sequence, _ in decoder.step()} <= {stays, came}


def test_more_places_than_the_model_has_activations_for_are_refused():
    with pytest.raises(ValueError, match=f"{WINDOW + 1} places need"):
        Decoder(model_on(CpuOps(threads=1)), places=WINDOW + 1)


def test_streams_of_a_seed_differ_by_prompt_by_sample_and_by_position():
    draws = [
        Stream(seed, prompt, sample).uniform()(position)
        for seed in (0, 2**64 - 1) for prompt in (0, 1) for sample in (0, 1) for position in (0, 1, 2**40)
    ]  # fmt: skip
    assert len(set(draws)) == len(draws)
    at = Stream(4).uniform()
    assert [at(3), at(0), at(3)] == [Stream(4).uniform()(position) for position in (3, 0, 3)]


# ---- texts --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(80)
    tokenizer.train_bpe(TEXT)
    return tokenizer


def test_the_same_seed_writes_the_same_texts_whatever_their_number_and_the_places(tokenizer):
    model = model_on(CpuOps(threads=1), tokenizer.vocab_size)
    prompts, options = [("first", "the cat"), ("second", "on the mat")], {"num_tokens": 25, "seed": 6, "eos_id": 3}
    texts = list(generate_many(model, tokenizer, prompts, num_samples=5, **options))
    assert [text[:2] for text in texts] == [(prompt, sample) for prompt in range(2) for sample in range(5)]
    assert texts[0].continuation == "".join(generate(model, tokenizer, "the cat", **options))
    assert len({text.continuation for text in texts[:5]}) == 5
    for places in (1, 2, 7):
        assert list(generate_many(model, tokenizer, prompts, num_samples=5, places=places, **options)) == texts
    fewer = list(generate_many(model, tokenizer, prompts, num_samples=2, **options))
    assert fewer == texts[:2] + texts[5:7]


def test_a_text_that_meets_a_text_to_stop_at_ends_there_and_frees_its_place(tokenizer):
    model, prompts = model_on(CpuOps(threads=1), tokenizer.vocab_size), [("first", "the cat"), ("second", "on the mat")]
    whole = [text.continuation for text in generate_many(model, tokenizer, prompts, num_samples=4, num_tokens=25)]
    stop = whole[0][10:14]
    ended = [
        text.continuation
        for text in generate_many(model, tokenizer, prompts, num_samples=4, num_tokens=25, places=2, stops=[stop])
    ]
    assert ended == [text.partition(stop)[0] for text in whole]


@pytest.mark.parametrize("number", [0, -3, MOST_SAMPLES + 1])
def test_an_impossible_number_of_samples_is_refused_when_it_is_asked_for(tokenizer, number):
    model = model_on(CpuOps(threads=1), tokenizer.vocab_size)
    with pytest.raises(UserError, match=f"^--num-samples is {number}, but must be from 1 to {MOST_SAMPLES}$"):
        generate_many(model, tokenizer, [("--prompt", "the cat")], num_samples=number)


def test_as_many_texts_are_written_at_once_as_memory_allows(monkeypatch):
    ops, config = CpuOps(threads=1), ModelConfig(vocab_size=1000, max_seq_len=64, embed_dim=64, num_heads=2)
    free = 2**40
    monkeypatch.setattr(ops, "free_bytes", lambda: free)
    assert [fitting(config, ops, texts) for texts in (1, 3, 64, 10_000)] == [1, 3, 64, 64]
    free = 0
    assert fitting(config, ops, 10) == 1, "whether one fits is the business of `load_model`"


# ---- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(hipgpt):
    """A trained run called `r`, in the current directory of the commands."""
    Path("text.txt").write_text(TEXT)
    model = ("--dim", 16, "--heads", 2, "--ff", 32, "--layers", 1, "--seq", 16, "--batch", 4, "--vocab-size", 100)
    hipgpt.once("train", "--data-path", "text.txt", "--steps", 4, *model, name="r")
    return "r"


def test_samples_are_printed_with_headings_or_as_json(hipgpt, run):
    flags = ("generate", "--run-name", run, "--num-tokens", 6, "--seed", 3)
    one = hipgpt(*flags, "--prompt", "the cat").stdout
    many = hipgpt(*flags, "--prompt", "the cat", "--num-samples", 3).stdout
    assert many.startswith(f"--- sample 1 ---\n{one}--- sample 2 ---\nthe cat")
    Path("prompts.txt").write_bytes(b"the cat\r\non the mat\n")
    by_line = hipgpt(*flags, "--prompts", "prompts.txt").stdout
    assert by_line.startswith(f"--- prompt 1 ---\n{one}--- prompt 2 ---\non the mat")
    lines = hipgpt(*flags, "--prompts", "-", "--num-samples", 3, "--json", input="the cat\non the mat").stdout
    found = [json.loads(line) for line in lines.splitlines()]
    numbers = [(prompt, sample) for prompt in (1, 2) for sample in (1, 2, 3)]
    assert [(each["prompt_number"], each["sample"]) for each in found] == numbers
    assert [each["prompt"] for each in found] == ["the cat"] * 3 + ["on the mat"] * 3
    texts = [each["prompt"] + each["continuation"] for each in found]
    assert "".join(f"--- sample {n} ---\n{text}\n" for n, text in enumerate(texts[:3], start=1)) == many
    assert by_line == f"--- prompt 1 ---\n{texts[0]}\n--- prompt 2 ---\n{texts[3]}\n"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ((), "give a text to continue"),
        (("--prompt", "the", "--prompts", "prompts.txt"), "--prompt and --prompts are both given"),
        (("--prompts", "absent.txt"), "--prompts absent.txt does not exist: give the path of a file"),
        (("--prompts", "checkpoints"), "is a directory"),
        (("--prompts", "gap.txt"), "--prompts gap.txt: line 2 is empty"),
        (("--prompts", "void.txt"), "--prompts void.txt: line 1 is empty"),
        (("--prompts", "bad.txt"), "--prompts bad.txt, line 2: 'a\\udcff' is not valid text: give it in UTF-8"),
        (("--prompts", "unknown.txt"), "--prompts unknown.txt, line 1: 'ЖЖ' has no token"),
        (("--prompt", "the", "--num-samples", 0), "--num-samples is 0"),
        (("--prompt", "the", "--num-samples", 10**12), "--num-samples is 1000000000000"),
    ],
)
def test_generate_refuses_in_one_line(hipgpt, run, flags, complaint):
    files = {"gap.txt": b"a\n\nb\n", "void.txt": b"", "bad.txt": b"the\na\xff\n", "unknown.txt": "ЖЖ\n".encode()}
    for name, content in files.items():
        Path(name).write_bytes(content)
    assert complaint in hipgpt("generate", "--run-name", run, *flags, status=2).stderr
