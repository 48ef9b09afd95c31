"""How long a step takes on many GPUs: a cost model, fitted to measurements on one and two, and its predictions.

    python benchmarks/scaling.py

Prints the tables of docs/scaling.md, which explains the formulas. Times are in milliseconds, sizes in bytes, and
bandwidths in bytes per millisecond unless a name says otherwise.
"""

from collections.abc import Iterator
from statistics import NormalDist
from typing import NamedTuple

from gpt.config import PRESETS, ModelConfig, pick
from gpt.distributed.shares import Shares, Stretch
from gpt.parameters import layout, parameter_count

VOCAB_MULTIPLE = 128  # of the kernels
GB_PER_S = 1e6  # in bytes per millisecond

# ---- fitted to the measurements ----
NVLINK = 308 * GB_PER_S  # 512 MiB on two GPUs in 1.74 ms
PER_CTA = 26 * GB_PER_S  # bandwidth of NVLink that one thread block of NCCL's reaches: NCCL_MAX_CTAS of 2 to 16
HELD = 0.03  # of a step: what exchanges beside the backward pass cost at least, if they last that long
HELD_LONG = 0.3  # of the time that they last
WAITS = 0.2  # starting the exchanges, and moments by which ranks are apart
LAUNCH = 0.06  # each exchange after the gradients': norms, weights
SPREAD = 0.01  # standard deviation of the speed of equal GPUs

# ---- from elsewhere ----
HOP, NETWORK_HOP = 3.4e-3, 14e-3  # in a ring or a tree, inside a machine and between two: NCCL's own cost model
NETWORK_REACHED = 0.8  # of the cards' nominal bandwidth
UPDATE = 11.2e-9  # AdamW and the norm, per parameter: 1.4 ms for 124 million
LAYER = 0.06  # the launches of a layer, which take this however few rows there are


class Machine(NamedTuple):
    """A kind of machine. `link` is the bandwidth of a ring inside it, `network` that of all its network cards."""

    name: str
    gpus: int
    link: float
    network: float = 0.0
    slower: float = 1.0  # how many times an H200's time a step takes


class Work(NamedTuple):
    """A model, and the times of its step on one H200."""

    preset: str
    adamw: float
    muon: float  # that Muon adds

    @property
    def config(self) -> ModelConfig:
        preset = PRESETS[self.preset]
        return ModelConfig(vocab_size=preset["vocab_limit"], **pick(ModelConfig, preset))

    @property
    def batch(self) -> int:
        return int(PRESETS[self.preset].get("batch_size", 32))


class Step(NamedTuple):
    """The parts of a step's time. `whole` is the slowest rank's."""

    alone: float  # the same batch on one GPU
    compute: float
    exposed: float  # exchanges after the backward pass
    held: float  # time that products lose to exchanges beside them

    @property
    def whole(self) -> float:
        return self.compute + self.exposed + self.held

    @property
    def efficiency(self) -> float:
        return self.alone / self.whole


MEDIUM, SMALL, LARGE = Work("medium", 2.64, 0.26), Work("gpt2-124M", 56.4, 3.5), Work("gpt2-350M", 75.1, 14.7)
CLUSTER = Machine("NVLink, InfiniBand", 8, NVLINK, 8 * 50 * GB_PER_S)
DESKTOPS = (
    Machine("PCIe 4 x16", 2, 20 * GB_PER_S, slower=4.0),
    Machine("PCIe 4 x8", 2, 10 * GB_PER_S, slower=4.0),
)


def step(
    work: Work, machine: Machine, ranks: int, optimizer: str = "adamw", *, sharded: bool = False, in_bf16: bool = False,
    batch: float | None = None, accumulate: int = 1, ctas: int = 32, at_end: bool = False,
) -> Step:  # fmt: skip
    """The time of a step on `ranks` GPUs. `batch` is the sequences of one GPU at a time (None: the preset's).

    `at_end`: all gradients are reduced after the backward pass.
    """
    config, batch = work.config, work.batch if batch is None else batch
    shares = Shares(config, VOCAB_MULTIPLE, optimizer, 0, ranks, sharded=sharded)
    fixed = UPDATE * parameter_count(config) + LAYER * config.num_layers
    once = (work.adamw - fixed) * batch / work.batch
    muon = work.muon if optimizer == "muon" else 0.0
    alone = machine.slower * (accumulate * once + fixed + muon)
    if ranks == 1:
        return Step(alone, alone, 0.0, 0.0)
    of_muon = muon * _largest_share([stretch for bucket in shares.blocks.values() for stretch in bucket], ranks)
    slowest = 1 + SPREAD * NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))  # of normal numbers (Blom 1958)
    compute = machine.slower * (accumulate * once + fixed + of_muon) * slowest

    ring = Ring(machine, ranks, min(machine.link, ctas * PER_CTA))
    size = 2 if in_bf16 else 4
    backward = 2 / 3 * machine.slower * once * _blocks_part(config)
    final, busy = 0.0, 0.0  # when a bucket is final, and when the exchanges so far are done, since the first block
    beside = 0.0
    for lowest, bucket in shares.blocks.items():
        final = backward * (config.num_layers - lowest) / config.num_layers
        if at_end:
            final = backward
        start = max(busy, final)
        busy = start + ring.reduce(bucket, size)
        beside += max(0.0, min(busy, backward) - start)
    held = min(beside, max(HELD * machine.slower * once, HELD_LONG * beside))
    rest = ring.reduce(shares.rest, size)
    exposed = max(0.0, busy - backward) + rest + WAITS
    for region in (shares.muon, shares.adamw):
        if not region.is_whole:
            exposed += ring.gather(list(region.stretches), 2) + 2 * LAUNCH  # norms, then weights in bf16
    return Step(alone, compute, exposed, held)


class Ring:
    """The time of exchanges among `ranks` GPUs: latency, and bytes through the slowest link."""

    def __init__(self, machine: Machine, ranks: int, link: float) -> None:
        self._ranks, nodes = ranks, -(-ranks // machine.gpus)
        self._bandwidth = min(link, NETWORK_REACHED * machine.network) if nodes > 1 else link
        self._once_around = (ranks - nodes) * HOP + (nodes - 1) * NETWORK_HOP
        depth = (nodes - 1).bit_length()
        self._tree = 2 * ((ranks // nodes - 1) * HOP + depth * NETWORK_HOP)

    def reduce(self, stretches: list[Stretch], size: int) -> float:
        """The sum of stretches: an all-reduce of those that are whole (a ring or a tree), else a reduce-scatter."""
        whole = sum(s.stop - s.start for s in stretches if not s.bounds) * size
        latency = min(2 * self._once_around, self._tree) if whole else 0.0
        return 2 * self._part(whole) + latency + self._once([s for s in stretches if s.bounds], size)

    def gather(self, stretches: list[Stretch], size: int) -> float:
        """The exchange of shared stretches, so that every rank has all of them."""
        return self._once([s for s in stretches if s.bounds], size)

    def _once(self, shared: list[Stretch], size: int) -> float:
        return self._part(sum(s.stop - s.start for s in shared) * size) + (self._once_around if shared else 0.0)

    def _part(self, size: float) -> float:
        return size * (self._ranks - 1) / self._ranks / self._bandwidth


def _largest_share(shared: list[Stretch], ranks: int) -> float:
    """The part of all elements that the busiest rank steps."""
    own = [sum(s.bounds[rank + 1] - s.bounds[rank] for s in shared if s.bounds) for rank in range(ranks)]
    return max(own) / sum(own) if sum(own) else 1.0


def _blocks_part(config: ModelConfig) -> float:
    """The part of the products' work that is in the blocks, not in the head."""
    place = layout(config, VOCAB_MULTIPLE)
    return place.matrices / place.decayed


# ---- the tables ----------------------------------------------------------------------------------------------------

BEFORE = SMALL._replace(adamw=59.1)  # on another machine, with slower kernels of attention
MEASURED = (  # two H200 of one host: what, its measured time, and the prediction
    ("gpt2-124M, AdamW", 59.2, step(SMALL, CLUSTER, 2)),
    ("… one bucket, after the backward pass", 59.4, step(SMALL, CLUSTER, 2, at_end=True)),
    ("… the same in bf16", 59.2, step(SMALL, CLUSTER, 2, in_bf16=True, at_end=True)),
    ("… `--shard-optimizer`", 58.8, step(SMALL, CLUSTER, 2, sharded=True)),
    ("… `--shard-optimizer`, one bucket", 59.1, step(SMALL, CLUSTER, 2, sharded=True, at_end=True)),
    ("gpt2-124M, Muon", 61.3, step(SMALL, CLUSTER, 2, "muon")),
    ("gpt2-350M, AdamW", 79.9, step(LARGE, CLUSTER, 2)),
    ("… `--shard-optimizer`", 78.9, step(LARGE, CLUSTER, 2, sharded=True)),
    ("gpt2-350M, Muon", 87.5, step(LARGE, CLUSTER, 2, "muon")),
    ("medium, Muon", 3.2, step(MEDIUM, CLUSTER, 2, "muon")),
    *((f"gpt2-124M, AdamW, earlier, `NCCL_MAX_CTAS={ctas}`", ms, step(BEFORE, CLUSTER, 2, ctas=ctas))
      for ctas, ms in ((32, 61.4), (16, 61.5), (8, 62.2), (4, 62.9), (2, 64.4))),
)  # fmt: skip


def fit() -> Iterator[str]:
    """Rows of the table of the fit: what, measured, predicted."""
    for what, measured, predicted in MEASURED:
        yield f"| {what} | {measured} | {predicted.whole:.1f} | {100 * (predicted.whole / measured - 1):+.1f} % |"


def cluster() -> Iterator[str]:
    """Rows of the cluster's table, with the preset's batch on each GPU."""
    for work in (SMALL, LARGE, MEDIUM):
        for ranks in (8, 64, 1024):
            adamw, muon = (step(work, CLUSTER, ranks, optimizer) for optimizer in ("adamw", "muon"))
            sharded = step(work, CLUSTER, ranks, sharded=True)
            tokens = ranks * work.batch * work.config.max_seq_len
            yield (
                f"| {work.preset} | {ranks:,} | {tokens / 1e6:.2g} M | {_said(adamw)} | {_said(sharded)} | "
                f"{_said(muon)} | {_rate(tokens, muon)} | {_duration(1e9 / tokens * muon.whole)} | "
                f"{_duration(70e9 / tokens * muon.whole)} |"
            )


def fixed_batch() -> Iterator[str]:
    """Rows of the cluster's table with a step of 1,024 x 1,024 tokens, however many GPUs share it."""
    for work in (SMALL, LARGE):
        for ranks in (8, 64, 1024):
            each = 1024 // ranks
            batch = min(work.batch, each)
            adamw, muon = (
                step(work, CLUSTER, ranks, optimizer, batch=batch, accumulate=each // batch)
                for optimizer in ("adamw", "muon")
            )
            yield (
                f"| {work.preset} | {ranks:,} | {each // batch} x {batch} | {_said(adamw)} | {_said(muon)} | "
                f"{_rate(1 << 20, muon)} | {_duration(1e9 / (1 << 20) * muon.whole)} | "
                f"{_duration(70e9 / (1 << 20) * muon.whole)} |"
            )


def desktop() -> Iterator[str]:
    """Rows of the desktops' table."""
    for work in (SMALL, LARGE, MEDIUM):
        for machine in DESKTOPS:
            steps = (
                step(work, machine, 2),
                step(work, machine, 2, in_bf16=True),
                step(work, machine, 2, "muon"),
                step(work, machine, 2, accumulate=4),
            )
            muon = steps[2]
            tokens = 2 * work.batch * work.config.max_seq_len
            yield (
                f"| {work.preset} | {machine.name} | " + " | ".join(map(_said, steps)) + f" | {_rate(tokens, muon)} | "
                f"{_duration(1e9 / tokens * muon.whole)} | {_duration(70e9 / tokens * muon.whole)} |"
            )


def memory() -> Iterator[str]:
    """Rows of the table of memory: GiB of weights, gradients and moments on each GPU, in bf16."""
    for work in (SMALL, LARGE):
        place = layout(work.config, VOCAB_MULTIPLE)
        rest = place.total - place.matrices
        for ranks in (1, 2, 8, 64):
            own, shared = 6 + 18 / ranks if ranks > 1 else 18, 6 + 14 / ranks if ranks > 1 else 14
            sizes = (
                18 * place.total, own * place.total, shared * place.matrices + 18 * rest,
                shared * place.matrices + own * rest,
            )  # fmt: skip
            yield f"| {work.preset} | {ranks} | " + " | ".join(f"{size / 2**30:.2f}" for size in sizes) + " |"


def _said(times: Step) -> str:
    return f"{times.whole:.1f} ms, {100 * times.efficiency:.0f} %"


def _rate(tokens: int, times: Step) -> str:
    return f"{tokens / times.whole / 1e3:.3g} M"


def _duration(ms: float) -> str:
    for name, seconds in (("days", 172_800), ("h", 7200), ("min", 120), ("s", 0)):
        if ms / 1e3 >= seconds:
            return f"{ms / 1e3 / {'days': 86_400, 'h': 3600, 'min': 60, 's': 1}[name]:,.3g} {name}"
    raise ValueError(ms)


def main() -> None:
    for table in (fit, cluster, fixed_batch, desktop, memory):
        print(f"{table.__name__}:", *table(), sep="\n", end="\n\n")


if __name__ == "__main__":
    main()
