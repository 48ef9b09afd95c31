"""Many sequences are written at once, each of them as if it were alone.

A decoder has a fixed number of places. A sequence joins a free place, gets one token in each step, and leaves when it
has ended or nobody wants it any more; others come and go meanwhile. Each place has its own part of the KV cache, its
own length, and its own rule by which tokens are chosen.

A sequence's tokens depend on its request alone, on a given device: not on the other sequences, on its place, or on the
steps in which it joined. Two things make that so. Every operation of a step gives a sequence bits of its own
(`Operations.norm_linear`). And the draw for a token follows from the stream and the token's position (`Stream`).

The model's positions are learned, so a full window cannot be shifted. Its last half is decoded again from position 0
and becomes the new context. That costs half a window of work for every half a window of tokens, so a token of a long
text costs two positions. For example, with a window of 8 the cache holds positions 0 to 7 after 8 tokens. The last 4
tokens are then decoded again as positions 0 to 3, and the next 4 tokens fill positions 4 to 7.

A step is one more position of all sequences, in one pass. Before it, the context of each sequence that has just joined
or whose window is full is read, all but its last token, in a pass of its own. The ids stay on the device, so the host
can ask for the next step before it has seen those of this one, and the device goes from step to step without a pause.
Only a new context needs the ids on the host.

A GPU records its passes. It has recordings for a few numbers of places and for a few lengths of a context, and takes
the next larger one. For example, three sequences go through the pass of four places. Of a context of 21 tokens, the
first 20 go through the pass of 32. Zeros fill its other 12 places, and nothing reads what these leave in the cache.
"""

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial

import numpy as np

from gpt.config import SamplingConfig
from gpt.errors import UserError
from gpt.model import GPT, KVCache
from gpt.ops.interface import Array, Operations, SamplingRule, Work, blame
from gpt.parameters import padded_vocab


@dataclass(frozen=True)
class Stream:
    """The source of a text's draws. Texts of one seed differ in the numbers of their prompt and their sample."""

    seed: int
    prompt: int = 0
    sample: int = 0

    def uniform(self) -> Callable[[int], float]:
        """A function of a token's position that returns a random number in [0, 1), which depends on nothing else."""
        bits = np.random.Philox(
            counter=np.array([0, self.sample, self.prompt, 0], np.uint64),
            key=np.array([self.seed % 2**64, 0], np.uint64),
        )
        state, generator = bits.state, np.random.Generator(bits)

        def at(position: int) -> float:
            # To set the state takes a tenth of the time of making another Philox.
            state["state"]["key"][1] = position
            bits.state = state
            return generator.random()

        return at


@dataclass(frozen=True)
class Request:
    """A text to be written: up to `num_tokens` ids that follow those of `prompt`, which has one at least.

    The text ends before `eos_id` if that is drawn; -1 is none. The model looks back on at most `window` ids, which is
    at most its max_seq_len, so it sees only the end of a longer prompt. `watch`, if given, is called with the logits of
    each token, float32 [vocab], one or more steps before `Decoder.step` returns the token. The device waits for that.
    """

    prompt: list[int]
    num_tokens: int
    sampling: SamplingConfig
    eos_id: int
    stream: Stream
    window: int
    watch: Callable[[np.ndarray], None] | None = None


@dataclass(eq=False)
class Sequence:
    """A request in its place."""

    request: Request
    place: int
    uniform: Callable[[int], float]
    context: list[int]  # ids to look back on, as far as the host has seen them
    length: int = 0  # positions in the cache, at the end of all steps that were asked for
    asked: int = 0  # tokens that were asked for
    seen: int = 0  # tokens that the host has
    ended: bool = False

    @property
    def wants_more(self) -> bool:
        return self.asked < self.request.num_tokens

    @property
    def is_full(self) -> bool:
        return self.length == self.request.window


class Decoder:
    """`places` places for sequences that `model` writes. Their memory is allocated here, and steps are recorded once.

    Example:
        decoder = Decoder(model, places=2)
        for prompt in ([3, 1], [4]):
            decoder.join(Request(prompt, 20, SamplingConfig(), -1, Stream(seed=1), window=64))
        while decoder.sequences:
            for sequence, id in decoder.step():
                print(sequence.place, "ends" if id is None else id)

    Raises ValueError if the model's activations have fewer rows than there are places.
    """

    def __init__(self, model: GPT, places: int) -> None:
        if places > len(model.workspace.logits):
            raise ValueError(f"{places} places need activations of as many rows, not {len(model.workspace.logits)}")
        ops = model.ops
        self._model, self._ops, self.places = model, ops, places
        self.sequences: list[Sequence] = []
        self._inputs = ops.inputs(
            start=((places,), "int32"), uniform=((places,), "float64"), rules=((places, 4), "float64")
        )
        vocab = padded_vocab(model.config, ops.vocab_multiple)
        self._context = ops.inputs(
            ids=((1, model.config.max_seq_len), "int32"), last=((1,), "int32"), place=((1,), "int32"),
            marks=((vocab,), "uint8"),
        )  # fmt: skip
        self._rules, self._uniforms = np.zeros((places, 4)), np.zeros(places)
        self._rules[:] = SamplingRule(1, 0, 1, 1).numbers
        self._cache = KVCache.allocate(model.config, ops, self._inputs.device["start"], self._context.device["place"])
        self._seen = ops.zeros((places, vocab), "uint8")
        self._drawn = ops.zeros(places, "int32")
        self._output = ops.output(self._drawn)
        self._steps: dict[int, Work] = {}  # by the number of places that go through the model
        self._reads: dict[int, Work] = {}  # by the number of positions
        self._queued: deque[tuple[Callable[[], np.ndarray], list[Sequence]]] = deque()  # a wait for ids, and whose

    @property
    def free(self) -> int:
        """The number of free places."""
        return self.places - len(self.sequences)

    def join(self, request: Request) -> Sequence:
        """Give a request the first free place, from the next step on. Raises ValueError if none is free."""
        taken = {sequence.place for sequence in self.sequences}
        free = [place for place in range(self.places) if place not in taken]
        if not free:
            raise ValueError(f"all {self.places} places are taken")
        sampling = request.sampling
        rule = SamplingRule(sampling.temperature, sampling.top_k, sampling.top_p, sampling.penalty)
        self._rules[free[0]] = rule.numbers
        context = request.prompt[-request.window :]
        sequence = Sequence(request, free[0], request.stream.uniform(), context)
        self.sequences.append(sequence)
        return sequence

    def leave(self, sequence: Sequence) -> None:
        """Free a sequence's place at once. What was asked for in its name is not returned any more."""
        if not sequence.ended:
            sequence.ended = True
            self.sequences.remove(sequence)

    def step(self) -> list[tuple[Sequence, int | None]]:
        """Ask for one more token of every sequence, and return those that the host has got by now, in order.

        An id of None says that a sequence has ended and left. Raises UserError if a sequence's logits are not finite.
        """
        self._ask()
        got: list[tuple[Sequence, int | None]] = []
        all_needed = any(each.is_full for each in self.sequences) or not any(each.wants_more for each in self.sequences)
        while len(self._queued) > (0 if all_needed else self._ops.steps_ahead):
            wait, sequences = self._queued[0]
            ids = wait()
            self._queued.popleft()  # only now: if something interrupts the wait, `settle` waits again
            for sequence in sequences:
                if not sequence.ended:
                    got += self._take(sequence, int(ids[sequence.place]))
        # A full window: its last half becomes the context of an empty cache.
        for sequence in self.sequences:
            if sequence.is_full:
                sequence.context = sequence.context[-max(1, sequence.request.window // 2) :]
                sequence.length = 0
        return got

    def ids(self, request: Request) -> Generator[int, None, None]:
        """The ids of a request, one by one, from a decoder that has nothing else to do. Raises as `step`."""
        sequence = self.join(request)
        try:
            while not sequence.ended:
                yield from (id for _, id in self.step() if id is not None)
        finally:
            self.leave(sequence)
            self.settle()

    def settle(self) -> None:
        """Wait until the device is done with all that was asked for: its memory may be freed, or used for other work.

        Ids that nobody has got yet are lost.
        """
        while self._queued:
            self._queued[0][0]()
            self._queued.popleft()

    def _ask(self) -> None:
        """Queue a step of all sequences that want more tokens."""
        sequences = [sequence for sequence in self.sequences if sequence.wants_more]
        if not sequences:
            return
        for sequence in sequences:
            if not sequence.length:
                self._begin(sequence)
            self._uniforms[sequence.place] = sequence.uniform(sequence.asked)
        with self._inputs.written() as values:
            # A place without a sequence goes through the pass as well, at position 0: nothing reads what it leaves.
            values["start"][...] = 0
            for sequence in sequences:
                values["start"][sequence.place] = sequence.length
            values["uniform"][...], values["rules"][...] = self._uniforms, self._rules
        self._go_on(1 + max(sequence.place for sequence in sequences))
        for sequence in sequences:
            self._show_logits(sequence)
            sequence.length += 1
            sequence.asked += 1
        self._queued.append((self._output.fetched(), sequences))

    def _begin(self, sequence: Sequence) -> None:
        """Read the context of an empty place, all but its last token, which the next step reads."""
        place, (*earlier, last) = sequence.place, sequence.context
        with self._context.written() as values:
            values["ids"][...], values["marks"][...] = 0, 0
            values["ids"][0, : len(earlier)], values["marks"][sequence.context] = earlier, 1
            values["last"][0], values["place"][0] = last, place
        context = self._context.device
        self._ops.copy(context["marks"], out=self._seen[place])
        self._ops.copy(context["last"], out=self._drawn[place : place + 1])
        sequence.length = len(earlier)
        if not earlier:
            return
        rows = min(self._ops.context_rows(len(earlier)), self._model.config.max_seq_len)
        if rows not in self._reads:
            read = partial(self._model.read, context["ids"][:, :rows], self._cache)
            self._reads[rows] = self._ops.replayed(read)
        self._reads[rows]()

    def _go_on(self, places: int) -> None:
        """One more position of the first places, of so many at least."""
        rows = min(self.places, 1 << (places - 1).bit_length())
        if rows not in self._steps:
            inputs = self._inputs.device
            arrays = self._drawn[:rows], self._seen[:rows], inputs["uniform"][:rows], inputs["rules"][:rows]
            # Not a method of this object, which would then keep itself alive, and its cache.
            self._steps[rows] = self._ops.replayed(partial(_draw_next, self._model, self._cache, *arrays))
        self._steps[rows]()

    def _show_logits(self, sequence: Sequence) -> None:
        """Call a sequence's `watch` with the logits that the last pass has left in its row."""
        if sequence.request.watch:
            logits = self._ops.to_host(self._model.workspace.logits[sequence.place])
            sequence.request.watch(logits[: self._model.config.vocab_size])

    def _take(self, sequence: Sequence, id: int) -> list[tuple[Sequence, int | None]]:
        """Give a sequence an id that was drawn for it. Returns what `step` returns of that."""
        if _checked(id, self._ops) == sequence.request.eos_id:
            self.leave(sequence)
            return [(sequence, None)]
        sequence.context.append(id)
        sequence.seen += 1
        if sequence.seen < sequence.request.num_tokens:
            return [(sequence, id)]
        self.leave(sequence)
        return [(sequence, id), (sequence, None)]


def _draw_next(model: GPT, cache: KVCache, drawn: Array, seen: Array, uniform: Array, rules: Array) -> None:
    """Decode the ids that were drawn last, and draw the next ones. Each array has a row for each of the same places."""
    logits = model.decode(drawn, cache)
    model.ops.sample(logits, seen, uniform, drawn, rules, model.config.vocab_size)


def _checked(id: int, ops: Operations) -> int:
    """A drawn id. Raises UserError for -1, which stands for logits that are not finite."""
    if id < 0:
        raise UserError(
            f"the model's logits are not finite, as its training diverged: take an earlier --step{blame(ops)}"
        )
    return id
