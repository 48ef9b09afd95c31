"""The sum of all ranks' gradients, computed while the backward pass goes on."""

from collections.abc import Sequence

from gpt.distributed.collectives import Collectives, Exchange
from gpt.distributed.shares import OwnPart, Region, Shares, Stretch
from gpt.ops.interface import Array, Operations


class Reduction:
    """Sums up the gradients of a model over the ranks, and its metrics; `gradients` is the flat buffer.

    A whole stretch (`Shares`) is summed in place. Of a stretch that is shared out, the sums of this rank's elements go
    to the array that `own` has for the stretch's region. With `in_bf16`, numbers are rounded to bf16 for the exchange,
    which halves the bytes; the sums are float32 again afterwards.
    """

    def __init__(
        self, ops: Operations, gradients: Array, metrics: Array, shares: Shares, own: Sequence[tuple[Region, Array]],
        collectives: Collectives, in_bf16: bool = False,
    ) -> None:  # fmt: skip
        self._ops, self._gradients, self._metrics = ops, gradients, metrics
        self._shares, self._collectives = shares, collectives
        # Of each stretch: this rank's part, the array that it is in, and if numbers are rounded, that for what arrives.
        self._own: dict[Stretch, tuple[OwnPart, Array, Array | None]] = {}
        self._rounded = ops.empty(gradients.size) if in_bf16 else None
        for region, sums in own:
            arriving = ops.empty(region.size) if in_bf16 and not region.is_whole else None
            for stretch, part in zip(region.stretches, region.own_parts(), strict=True):
                self._own[stretch] = (part, sums, arriving)

    def block_is_final(self, layer: int) -> None:
        """The gradients of this layer's matrices, and of all later layers', will not change any more."""
        if bucket := self._shares.blocks.get(layer):
            self._collectives.reduce(list(map(self._exchange, bucket)))

    def finish(self) -> None:
        """All gradients are final: reduce the rest, and wait for the sums."""
        self._collectives.reduce([*map(self._exchange, self._shares.rest), Exchange(self._metrics)])
        self._collectives.wait()
        if self._rounded is not None:
            for stretch, (part, sums, arriving) in self._own.items():
                if arriving is None:
                    self._ops.convert(self._rounded[stretch.slice], out=self._gradients[stretch.slice])
                else:
                    self._ops.convert(arriving[part.own], out=sums[part.own])

    def _exchange(self, stretch: Stretch) -> Exchange:
        part, sums, arriving = self._own[stretch]
        whole = self._gradients[stretch.slice]
        if self._rounded is not None:
            exact, whole, sums = whole, self._rounded[stretch.slice], arriving
            self._ops.convert(exact, out=whole)
        return stretch.exchange(whole, sums[part.own] if stretch.bounds else None)
