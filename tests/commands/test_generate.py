"""Choosing tokens, streaming text, and the sliding window."""

import doctest
import inspect
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gpt import stops
from gpt.config import ModelConfig, SamplingConfig
from gpt.errors import UserError
from gpt.generate import draw, generate
from gpt.model import GPT, KVCache
from gpt.ops.cpu.host import HostOutput
from gpt.ops.cpu.operations import CpuOps
from gpt.ops.gpu.operations import GpuOps
from gpt.ops.interface import SamplingRule
from gpt.tokenizer import Tokenizer
from tests.support.devices import GPUS

WINDOW = 12
TEXT = "the cat sat on the mat and the dog sat on the log . 🙂 naïve 日本語 ends here . " * 3
GREEDY = SamplingConfig(temperature=0, repetition_penalty=1)
GRID = 2_000  # evenly spaced draws
PLAIN = {"temperature": 1, "top_k": 0, "top_p": 1, "repetition_penalty": 1}
CPU = CpuOps(threads=1)  # shared, because making one takes a thousand times as long as drawing one token


@pytest.fixture(scope="module", params=["word", "byte"])
def tokenizer(request) -> Tokenizer:
    tokenizer = Tokenizer(300, request.param)
    tokenizer.train_bpe(TEXT)
    return tokenizer


# Which ids are drawn does not depend on how a tokenizer makes a text of them, so one kind is enough for some tests.
one_kind = pytest.mark.parametrize("tokenizer", ["byte"], indirect=True)


def model_for(tokenizer: Tokenizer, ops=None) -> GPT:
    """An untrained model with large weights, so that its choices vary; on `ops`, by default the CPU's."""
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, max_seq_len=WINDOW, embed_dim=8, num_heads=2, ff_hidden_dim=16, num_layers=2
    )
    model = GPT(config, ops or CpuOps(threads=1))
    model.initialize(seed=5)
    for name, view in model.weights.named.items():
        if view.ndim == 2:
            view *= 1 if "wte" in name else 20
    return model


@pytest.fixture(scope="module")
def model(tokenizer) -> GPT:
    return model_for(tokenizer)


# ---- choosing a token ---------------------------------------------------------------------------------------------


def next_tokens(logits, context, sampling, uniforms) -> list[int]:
    """The id that each of `uniforms` draws from the same logits."""
    rows, seen = len(uniforms), np.isin(np.arange(len(logits)), context).astype(np.uint8)
    out = np.zeros(rows, np.int32)
    rule = SamplingRule(sampling.temperature, sampling.top_k, sampling.top_p, sampling.penalty)
    inputs = np.tile(logits, (rows, 1)), np.tile(seen, (rows, 1)), np.array(uniforms)
    CPU.sample(*inputs, out, np.tile(rule.numbers, (rows, 1)), len(logits))
    return out.tolist()


def next_token(logits, context, sampling, uniform) -> int:
    return next_tokens(logits, context, sampling, [uniform])[0]


def distribution(logits, context, **changes) -> dict[int, float]:
    """The probability of each id, found by sweeping the draw over a fine even grid."""
    sampling = SamplingConfig(**{**PLAIN, **changes})
    draws = (np.arange(GRID) + 0.5) / GRID
    chosen = Counter(next_tokens(np.array(logits, np.float32), context, sampling, draws))
    return {id: count / GRID for id, count in chosen.items()}


def softmax(logits) -> np.ndarray:
    e = np.exp(np.array(logits, float) - max(logits))
    return e / e.sum()


def test_without_filters_every_token_has_its_softmax_probability():
    logits = [0.5, -1.0, 2.0, 0.0]
    found = distribution(logits, [])
    # Each of the four boundaries between tokens moves a count on the grid by less than one cell.
    assert all(abs(found[id] - p) <= 2 / GRID for id, p in enumerate(softmax(logits)))


def test_temperature_divides_the_logits():
    logits = np.array([0.5, -1.0, 2.0, 0.0])
    found = distribution(logits, [], temperature=0.5)
    assert all(abs(found[id] - p) <= 2 / GRID for id, p in enumerate(softmax(logits / 0.5)))


def test_top_k_keeps_the_k_likeliest_and_of_equals_the_lowest_ids():
    assert set(distribution([3.0, 1.0, 2.0, 0.0], [], top_k=2)) == {0, 2}
    assert set(distribution([1.0, 1.0, 1.0, 2.0], [], top_k=2)) == {0, 3}
    assert set(distribution([1.0, 2.0], [], top_k=10)) == {0, 1}


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    assert set(distribution(logits, [], top_p=0.79)) == {0, 1}
    assert set(distribution(logits, [], top_p=0.81)) == {0, 1, 2}
    assert set(distribution(logits, [], top_p=1e-9)) == {0}


def test_top_p_counts_among_the_tokens_that_top_k_and_temperature_left():
    logits = np.log([0.4, 0.3, 0.2, 0.1])
    assert set(distribution(logits, [], top_k=2, top_p=0.6)) == {0, 1}  # 0.4 / 0.7 is below 0.6
    assert set(distribution(logits, [], top_k=2, top_p=0.55)) == {0}
    assert set(distribution(logits, [], temperature=0.25, top_p=0.7)) == {0}  # 0.4⁴ / Σ p⁴ is 0.72


def test_the_repetition_penalty_acts_first_and_once_on_each_token_of_the_context():
    assert next_token(np.array([2.0, 1.5]), [0, 0, 0], SamplingConfig(temperature=0, repetition_penalty=1.3), 0.0) == 0
    assert next_token(np.array([2.0, 1.5]), [0], SamplingConfig(temperature=0, repetition_penalty=1.4), 0.0) == 1
    assert next_token(np.array([-1.0, -1.5]), [0], SamplingConfig(temperature=0, repetition_penalty=1.6), 0.0) == 1
    assert set(distribution([2.0, 1.9, 1.8, 1.7], [0, 1], repetition_penalty=2, top_k=2)) == {2, 3}


def test_temperature_zero_takes_the_largest_logit_and_the_lowest_id_among_equals():
    assert next_token(np.array([1.0, 3.0, 3.0]), [], GREEDY, 0.999) == 1


def test_a_draw_on_the_border_of_two_tokens_takes_the_second():
    assert [next_token(np.zeros(4), [], SamplingConfig(**PLAIN), quarter / 4) for quarter in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("temperature", [1e-300, 1e-6])
@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("top_k", [0, 2])
def test_a_temperature_near_zero_takes_the_likeliest_however_large_the_logits(temperature, uniform, top_k):
    assert next_token(np.array([-1e4, 1e4, 0.0]), [], SamplingConfig(temperature, top_k, 1.0, 1.0), uniform) == 1


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 1.0, 1e6])
@pytest.mark.parametrize("logits", [[1e4, -1e4, 0.0], [-math.inf, 0.0, 1.0], [0.0, 0.0, 0.0]])
@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_extreme_logits_and_draws_still_choose_a_possible_token(temperature, logits, uniform):
    id = next_token(np.array(logits, np.float32), [], SamplingConfig(temperature, 0, 1.0, 1.0), uniform)
    assert logits[id] > -math.inf


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"temperature": -0.1}, "--temp"),
        ({"temperature": math.inf}, "--temp"),
        ({"temperature": math.nan}, "--temp"),
        ({"top_k": -1}, "--top-k"),
        ({"top_p": 0.0}, "--top-p"),
        ({"top_p": 1.1}, "--top-p"),
        ({"repetition_penalty": 0.0}, "--rep-penalty"),
        ({"repetition_penalty": math.nan}, "--rep-penalty"),
    ],
)
def test_values_out_of_range_are_refused_by_the_name_of_their_flag(values, flag):
    with pytest.raises(UserError, match=f"^{flag} is "):
        SamplingConfig(**values)


# ---- generating ---------------------------------------------------------------------------------------------------


def greedy_by_full_passes(model: GPT, ids: list[int], count: int, window: int, penalty: float = 1.0) -> list[int]:
    """Greedy decoding without a cache: the window grows to its length, then starts again from its last half."""
    start = max(0, len(ids) - window)
    for _ in range(count):
        if len(ids) - start > window:
            start = len(ids) - max(1, window // 2)
        logits = model.logits(np.array([ids[start:]], np.int32))[0, -1].astype(float)
        for id in set(ids[start:]):
            logits[id] *= penalty if logits[id] < 0 else 1 / penalty
        ids = [*ids, int(logits.argmax())]
    return ids


@pytest.mark.parametrize("penalty", [1.0, 1.5])
@pytest.mark.parametrize("window", [1, 2, 5, WINDOW])
def test_greedy_text_is_the_argmax_of_full_forward_passes_across_sliding_windows(model, tokenizer, window, penalty):
    prompt, greedy = "the cat sat on", SamplingConfig(temperature=0, repetition_penalty=penalty)
    ids = tokenizer.encode(prompt)
    texts = generate(model, tokenizer, prompt, num_tokens=40, sampling=greedy, max_seq_len=window)
    expected = greedy_by_full_passes(model, ids, 40, window, penalty)
    assert tokenizer.decode(ids) + "".join(texts) == tokenizer.decode(expected)
    assert len(set(expected)) > 3, "the model is varied enough for this to mean something"


def test_a_prompt_longer_than_the_window_uses_its_tail(model, tokenizer):
    prompt = TEXT.strip()
    ids = tokenizer.encode(prompt)
    texts = generate(model, tokenizer, prompt, num_tokens=3, sampling=GREEDY)
    assert tokenizer.decode(ids) + "".join(texts) == tokenizer.decode(greedy_by_full_passes(model, ids, 3, WINDOW))


class Recording:
    """A tokenizer that notes every id its decoder is fed."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.vocab_size, self.encode, self.ids = tokenizer, tokenizer.vocab_size, tokenizer.encode, []

    def decoder(self) -> "Recording":
        self.inner = self.tokenizer.decoder()
        return self

    def feed(self, id: int) -> str:
        self.ids.append(id)
        return self.inner.feed(id)

    def finish(self) -> str:
        return self.inner.finish()


FRAGMENTS = [*TEXT.split(), " ", "  ", "\n", "<|endoftext|>", "</w>"]
PROMPTS = st.lists(st.sampled_from(FRAGMENTS) | st.characters(exclude_categories=("Cs",)))


@given(prompt=PROMPTS.map("".join), seed=st.integers(0, 2**64 - 1))
@settings(max_examples=30)
def test_the_pieces_joined_are_the_text_of_all_ids_after_that_of_the_prompts(model, tokenizer, prompt, seed):
    prompt_ids, recording, count = tokenizer.encode(prompt), Recording(tokenizer), 2 * WINDOW
    assume(prompt_ids)
    wild = SamplingConfig(temperature=5.0, top_k=0, top_p=1.0)
    texts = list(generate(model, recording, prompt, num_tokens=count, sampling=wild, seed=seed))
    assert recording.ids[: len(prompt_ids)] == prompt_ids
    assert len(recording.ids) == len(prompt_ids) + count
    assert tokenizer.decode(prompt_ids) + "".join(texts) == tokenizer.decode(recording.ids)


@one_kind
def test_the_draws_of_all_positions_are_even_and_independent(tokenizer):
    model, recording, n = model_for(tokenizer), Recording(tokenizer), 1500
    model.weights.flat.fill(0)  # all logits equal
    list(generate(model, recording, "the", num_tokens=n, sampling=SamplingConfig(**PLAIN), seed=3))
    low = np.array(recording.ids[-n:]) < tokenizer.vocab_size // 2
    p = (tokenizer.vocab_size // 2) / tokenizer.vocab_size
    # Hoeffding: n independent draws miss their mean by t with a probability below 2 exp(-2 n t²), here 1e-8.
    assert abs(low.mean() - p) < math.sqrt(math.log(2e8) / (2 * n))
    pairs = low[0::2] & low[1::2]
    assert abs(pairs.mean() - p * p) < math.sqrt(math.log(2e8) / n)


def test_the_same_seed_writes_the_same_text_and_another_seed_another(model, tokenizer):
    texts = ["".join(generate(model, tokenizer, "the cat", num_tokens=30, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@one_kind
@pytest.mark.parametrize("steps_ahead", [1, 2])
@pytest.mark.parametrize("window", [1, 5, WINDOW])
def test_asking_for_steps_ahead_changes_no_text(model, tokenizer, monkeypatch, window, steps_ahead):
    def text(count, eos_id):
        texts = generate(model, tokenizer, "the cat", num_tokens=count, seed=4, eos_id=eos_id, max_seq_len=window)
        return list(texts)

    ids = list(draw(model, tokenizer.encode("the cat"), 30, SamplingConfig(), -1, 4, window))
    cases = [(1, -1), (30, -1), (30, ids[0]), (30, ids[7])]
    expected = [text(*case) for case in cases]
    monkeypatch.setattr(CpuOps, "steps_ahead", steps_ahead)
    assert [text(*case) for case in cases] == expected


@one_kind
@pytest.mark.parametrize("end", ["by itself", "early", "with an error", "by Ctrl+C"])
def test_nothing_is_under_way_when_generation_ends(tokenizer, monkeypatch, end):
    """Otherwise the device would read and write memory that no longer belongs to the generation."""
    model, under_way, interrupts = model_for(tokenizer), set(), []

    class Slow(HostOutput):
        def fetched(self):
            value, number = super().fetched(), object()
            under_way.add(number)

            def wait():
                if interrupts:
                    raise interrupts.pop()
                under_way.discard(number)
                return value()

            return wait

    monkeypatch.setattr(CpuOps, "steps_ahead", 1)
    monkeypatch.setattr(model.ops, "output", Slow)
    drawn = draw(model, [0], 10, SamplingConfig(), -1, 0, WINDOW)
    next(drawn)
    assert under_way
    if end == "with an error":
        model.weights.flat.fill(np.nan)
        with pytest.raises(UserError):
            list(drawn)
    elif end == "by Ctrl+C":
        interrupts.append(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            list(drawn)
    elif end == "early":
        drawn.close()
    else:
        list(drawn)
    assert not under_way


def test_closing_the_text_ends_its_generation(model, tokenizer, monkeypatch):
    drawn = []

    def noted(*arguments):
        drawn.append(draw(*arguments))
        return drawn[0]

    monkeypatch.setattr("gpt.generate.draw", noted)
    texts = generate(model, tokenizer, "the cat")
    next(texts)
    texts.close()
    assert inspect.getgeneratorstate(drawn[0]) == inspect.GEN_CLOSED


@one_kind
@pytest.mark.parametrize("device", GPUS)  # -1 is fed back through the embedding
def test_a_diverged_model_is_found_on_a_gpu_that_is_a_step_ahead(tokenizer, device):
    model = model_for(tokenizer, GpuOps(device(), "fp32"))
    model.ops.copy(np.full(model.weights.flat.shape, np.nan, np.float32), out=model.weights.flat)
    with pytest.raises(UserError, match="diverged"):
        list(draw(model, [0], 5, GREEDY, -1, 0, WINDOW))


@one_kind
@pytest.mark.parametrize("device", GPUS)
@pytest.mark.parametrize("sampling", [GREEDY, SamplingConfig()])
def test_a_gpu_draws_the_same_tokens_as_the_cpu(tokenizer, device, sampling):
    """Logits of float32 differ in their last digits. No draw here is close enough to a boundary to notice."""
    drawn = [
        list(draw(model_for(tokenizer, ops), tokenizer.encode("the cat"), 20, sampling, -1, 1, window=7))
        for ops in (CpuOps(threads=1), GpuOps(device(), "fp32"))
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 3


def test_generation_stops_before_the_end_token(model, tokenizer):
    ids = tokenizer.encode("the cat")
    expected = greedy_by_full_passes(model, ids, 20, WINDOW)[len(ids) :]
    end = expected[5]
    until = expected[: expected.index(end)]
    texts = generate(model, tokenizer, "the cat", num_tokens=20, sampling=GREEDY, eos_id=end)
    assert tokenizer.decode(ids) + "".join(texts) == tokenizer.decode(ids + until)


def test_a_text_ends_before_the_text_to_stop_at_that_is_complete_first(model, tokenizer):
    whole = "".join(generate(model, tokenizer, "the cat", num_tokens=30))
    for texts in ([whole[20:23]], [whole[-1]], [whole[7:30], whole[9:11]], ["never in it"]):
        found = [(place + len(stop), place) for stop in texts if (place := whole.find(stop)) >= 0]
        pieces = list(generate(model, tokenizer, "the cat", num_tokens=30, stops=texts))
        assert "".join(pieces) == (whole[: min(found)[1]] if found else whole)
        assert len(pieces) <= 31  # one for each token, and the rest


def test_the_beginning_of_a_text_to_stop_at_is_held_back_until_it_is_certain():
    assert doctest.testmod(stops) == (0, 2)
    held = stops.Stops(["abab"])
    assert [held.feed(piece) for piece in ("xab", "ac", "aba")] == ["x", "abac", ""]
    assert held.finish() == "aba"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"stops": ["a", ""]}, "--stop is empty"),
        ({"prompt": ""}, "--prompt '' has no token"),
        ({"prompt": "a\ud800"}, "--prompt .* is not valid text"),
        ({"num_tokens": 0}, "--num-tokens is 0"),
        ({"max_seq_len": 0}, "--max-seq-len is 0"),
        ({"max_seq_len": WINDOW + 1}, f"--max-seq-len is 13, but must be between 1 and the model's {WINDOW}"),
        ({"eos_id": 100_000}, "--eos-id is 100000"),
        ({"eos_id": -2}, "--eos-id is -2"),
        ({"seed": -1}, "--seed is -1"),
    ],
)
def test_impossible_arguments_are_refused_when_generate_is_called(model, tokenizer, arguments, complaint):
    with pytest.raises(UserError, match=complaint):
        generate(model, tokenizer, **{"prompt": "the cat", **arguments})


def test_a_prompt_of_unknown_characters_and_a_foreign_tokenizer_are_refused():
    known, other = Tokenizer(300), Tokenizer(300)
    known.train_bpe(TEXT)
    other.train_bpe("something else entirely")
    with pytest.raises(UserError, match=r"--prompt 'ЖЖ' has no token"):
        generate(model_for(known), known, "ЖЖ")
    with pytest.raises(UserError, match=r"the tokenizer has \d+ tokens, but the model"):
        generate(model_for(known), other, "the")


@one_kind
def test_a_model_that_diverged_is_refused(tokenizer):
    model = model_for(tokenizer)
    model.weights.named["transformer.wte.weight"].fill(1)
    model.weights.named["transformer.ln_f.bias"].fill(3e38)  # each logit is a sum that overflows
    with np.errstate(over="ignore"), pytest.raises(UserError, match="not finite.*--step"):
        list(generate(model, tokenizer, "the cat"))
    model.weights.flat.fill(np.nan)
    with pytest.raises(UserError, match="not finite.*--step"):
        list(generate(model, tokenizer, "the cat"))


def test_the_memory_of_a_cache_is_the_size_of_its_arrays():
    config, ops = ModelConfig(vocab_size=9, max_seq_len=7, embed_dim=12, num_heads=3, num_layers=2), CpuOps(threads=1)
    cache = KVCache.allocate(config, ops, ops.zeros(3, "int32"), ops.zeros(1, "int32"))
    assert 3 * KVCache.bytes(config, ops) == cache.keys.nbytes + cache.values.nbytes
