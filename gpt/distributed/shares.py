"""Which rank steps which elements of a model's flat buffers, and in which order their gradients are reduced.

The matrices of the blocks are reduced in buckets of neighboring layers, the last layers first, because the backward
pass finishes those first. The rest (embeddings, biases, layer norms) is final only at the end of the backward pass. The
flat buffer has the matrices of one module side by side, so a bucket is one stretch of each module's.

Elements that all ranks step are `whole`: every rank keeps all of their moments. The others are shared out: a rank keeps
and steps only its own elements, and all ranks then gather the results (ZeRO stage 1, Rajbhandari et al. 2020). Muon's
matrices are always shared out, each of them whole to one rank, because orthogonalizing them is the expensive part.

For example, 4 layers and 2 ranks with a bucket of 2 layers: layers 2 and 3 are reduced first. With Muon, rank 0 gets
layers 0 and 2 of every module, and rank 1 layers 1 and 3:

    flat buffer      qkv 0 | qkv 1 | qkv 2 | qkv 3 | proj 0 | proj 1 | …
    stretches        [------------]  [------------]  [---------------]
    rank 0 steps     qkv 0           qkv 2           proj 0
    its own buffer   qkv 0 | qkv 2 | proj 0 | proj 2 | …
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from gpt.arithmetic import ceil_div, round_up
from gpt.config import ModelConfig
from gpt.distributed.collectives import Exchange
from gpt.lora import adapter_elements
from gpt.ops.interface import ALIGNMENT, Array
from gpt.parameters import layout, matrix_spans

BUCKET = 1 << 23  # elements of a bucket at least: 32 MiB of gradients, of which a link's bandwidth is reached


class Stretch(NamedTuple):
    """Neighboring elements of the flat buffers that are reduced at once. Rank r steps those from bounds[r] to
    bounds[r + 1]; if there are no bounds, every rank steps all of them.
    """

    start: int
    stop: int
    bounds: tuple[int, ...] = ()

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)

    def exchange(self, whole: Array, own: Array = None) -> Exchange:
        """The exchange of its elements, `whole`; `own` has this rank's part of them."""
        return Exchange(whole, tuple(bound - self.start for bound in self.bounds), own)


class OwnPart(NamedTuple):
    """Elements `elements` of the flat buffers that a rank steps. They lie in its own buffer from `start` on."""

    elements: slice
    start: int

    @property
    def own(self) -> slice:
        return slice(self.start, self.start + self.elements.stop - self.elements.start)


@dataclass(frozen=True)
class Region:
    """A part of the flat buffers, from `start` to `stop`, that one optimizer steps: all of it, or this rank's share.

    A rank's own buffer has the elements that it steps, in the order of the flat buffer.
    """

    start: int
    stop: int
    stretches: tuple[Stretch, ...]  # in the order of the flat buffer; together they are the region
    rank: int

    @property
    def is_whole(self) -> bool:
        return not any(stretch.bounds for stretch in self.stretches)

    def own_parts(self) -> list[OwnPart]:
        """This rank's part of each stretch."""
        parts, start = [], 0
        for stretch in self.stretches:
            low, high = stretch.start, stretch.stop
            if stretch.bounds:
                low, high = stretch.bounds[self.rank : self.rank + 2]
            parts.append(OwnPart(slice(low, high), start))
            start += high - low
        return parts

    @property
    def size(self) -> int:
        """The number of own elements."""
        return sum(part.elements.stop - part.elements.start for part in self.own_parts())

    def exchanges(self, flat: Array, own: Array) -> list[Exchange]:
        """The exchanges of all elements, in a flat buffer, of which this rank's are in `own`."""
        pairs = zip(self.stretches, self.own_parts(), strict=True)
        return [stretch.exchange(flat[stretch.slice], own[part.own]) for stretch, part in pairs]

    def own_before(self, end: int) -> int:
        """The number of own elements before element `end` of the flat buffers."""
        return sum(max(0, min(part.elements.stop, end) - part.elements.start) for part in self.own_parts())

    def within(self, start: int, stop: int) -> Iterator[OwnPart]:
        """The own parts between two elements of the flat buffers."""
        for elements, begin in self.own_parts():
            low, high = max(start, elements.start), min(stop, elements.stop)
            if low < high:
                yield OwnPart(slice(low, high), begin + low - elements.start)


class Shares:
    """How ranks share the flat buffers of a model that `optimizer`, "adamw" or "muon", trains.

    `muon` is the region that Muon steps (empty for AdamW), `adamw` the rest. `blocks` has for the lowest layer of each
    bucket its stretches, and `rest` those of everything else. With `sharded`, AdamW's elements are shared out too.
    With adapters of rank `lora`, the flat buffers are theirs: small, so they are reduced at once, as `rest`.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocab_multiple: int,
        optimizer: str,
        rank: int,
        size: int,
        *,
        sharded: bool = False,
        lora: int | None = None,
    ) -> None:
        self._size = size
        self.blocks: dict[int, list[Stretch]] = {}
        if lora:
            self.rest = [self._stretch(0, adapter_elements(config, lora), None, sharded and size > 1)]
            self.muon, self.adamw = Region(0, 0, (), rank), Region(0, self.rest[0].stop, tuple(self.rest), rank)
            return
        place = layout(config, vocab_multiple)
        has_muon = optimizer == "muon"
        by_matrix, by_element = has_muon and size > 1, sharded and size > 1 and not has_muon
        spans = matrix_spans(config, vocab_multiple)  # first element and stride of each module's matrices
        at_once = self._layers_at_once(config.num_layers, sum(stride for _, stride in spans), by_matrix)
        for stop in range(config.num_layers, 0, -at_once):
            first = max(0, stop - at_once)
            self.blocks[first] = [
                self._stretch(start + first * stride, start + stop * stride, stride if by_matrix else None, by_element)
                for start, stride in spans
            ]
        ends = (place.matrices, place.decayed, place.total)
        self.rest = [self._stretch(*ends_of, None, sharded and size > 1) for ends_of in pairwise(ends)]
        matrices = tuple(sorted(stretch for bucket in self.blocks.values() for stretch in bucket))
        if has_muon:
            self.muon = Region(0, place.matrices, matrices, rank)
            self.adamw = Region(place.matrices, place.total, tuple(self.rest), rank)
        else:
            self.muon = Region(0, 0, (), rank)
            self.adamw = Region(0, place.total, (*matrices, *self.rest), rank)

    def _layers_at_once(self, layers: int, elements: int, by_matrix: bool) -> int:
        """The layers of a bucket; if matrices are shared out, a multiple of the ranks, so that all get as many."""
        wanted = ceil_div(BUCKET, elements)
        return min(layers, round_up(wanted, self._size) if by_matrix else wanted)

    def _stretch(self, start: int, stop: int, unit: int | None, shared: bool) -> Stretch:
        """A stretch whose bounds lie at multiples of `unit` elements from its start (None: if `shared`, anywhere)."""
        if unit is None:
            if not shared:
                return Stretch(start, stop)
            unit = ALIGNMENT
        units = (stop - start) // unit
        return Stretch(start, stop, tuple(start + units * r // self._size * unit for r in range(self._size + 1)))
