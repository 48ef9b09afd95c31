"""`python -m tests.support.amd.speed [KERNEL …] [--target TARGET …]` prints how fast each kernel should be on AMD GPUs.

The kernels are those of a training step and of writing a token with gpt2-124M; with --products, matmul.hip for square
matrices, each of which lies as it is or transposed. If Triton is installed (pip install triton), each row of attention
and of a product on CDNA is followed by a row of Triton's kernel for the same work. A row takes up to two minutes. With
--steps it prints the time of whole training steps instead.
"""

import argparse
import sys

from gpt.config import ModelConfig
from tests.support.amd.emulator import unavailable
from tests.support.amd.speed import steps, triton_peer
from tests.support.amd.speed.chips import CHIPS
from tests.support.amd.speed.estimate import Estimate, estimate, estimate_triton
from tests.support.amd.speed.launches import Launch, products, training_step, written_tokens

HEADINGS = (
    "kernel", "target", "VGPRs", "LDS", "waves", "µs", "% peak", "% bandwidth", "limit",
    "matrix", "VALU", "copies", "exp", "LDS", "L1", "L2", "memory", "fetched",
)  # fmt: skip
# Macros that the table does not show, because its rows differ by others
COMMON = {"T", "MATRIX", "THREADS", "SIDE", "WIDTH", "LANES", "OUT", "ROW_THREADS", "BLOCKS"}


def main() -> int:
    options = _parsed()
    if reason := unavailable():
        print(reason, file=sys.stderr)
        return 2
    rows = steps.table() if options.steps else _kernels(options)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        left = row[0].ljust(widths[0]), row[1].ljust(widths[1])
        print("  ".join([*left, *map(str.rjust, row[2:], widths[2:])]))
    return 0


def _kernels(options: argparse.Namespace) -> list[tuple[str, ...]]:
    rows = [HEADINGS]
    for target in options.target:
        for launch in _launches(options, target):
            _add(rows, _row(_name(launch), launch.flops, target, estimate(launch, target)))
            if triton_peer.is_installed() and (peer := triton_peer.peer(launch, target)):
                of_peer = estimate_triton(peer, target)
                spilled = f", {of_peer.kernel.spills} registers spilled" if of_peer.kernel.spills else ""
                _add(rows, _row(f"  Triton, {peer.config}{spilled}", peer.flops, target, of_peer))
    return rows


def _add(rows: list[tuple[str, ...]], row: tuple[str, ...]) -> None:
    rows.append(row)
    print(" ".join(row), file=sys.stderr)


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.support.amd.speed", description=__doc__.splitlines()[0])
    parser.add_argument("kernel", nargs="*", help="kernels to estimate, such as attention; all by default")
    parser.add_argument("--target", nargs="+", choices=CHIPS, default=list(CHIPS), help="GPUs; all by default")
    parser.add_argument("--head-dim", type=int, default=64, help="size of each of the 12 heads, 64 by default")
    parser.add_argument("--batch", type=int, default=8, help="sequences of 1,024 tokens in a step, 8 by default")
    parser.add_argument("--dropout", type=float, default=0, help="probability of dropout, 0 by default")
    parser.add_argument("--sequences", type=int, default=1, help="sequences that write a token at once, 1 by default")
    parser.add_argument("--products", type=int, metavar="N", help="print products of [N, N] matrices instead")
    parser.add_argument("--steps", action="store_true", help="print whole training steps instead")
    return parser.parse_args()


def _launches(options: argparse.Namespace, target: str) -> list[Launch]:
    """The largest launch of each wanted kernel and set of macros."""
    if options.products:
        return products(target, options.products)
    width = 12 * options.head_dim
    config = ModelConfig(
        vocab_size=50257, max_seq_len=1024, num_layers=1, embed_dim=width, num_heads=12, ff_hidden_dim=4 * width,
        dropout=options.dropout,
    )  # fmt: skip
    largest: dict[tuple[object, ...], Launch] = {}
    tokens = written_tokens(target, config, options.sequences)
    for launch in (*training_step(target, config, options.batch), *tokens):
        key = launch.name, launch.instance
        if options.kernel and launch.name not in options.kernel:
            continue
        if key not in largest or launch.flops > largest[key].flops:
            largest[key] = launch
    return list(largest.values())


def _name(launch: Launch) -> str:
    macros = [f"{name}={value}" for name, value in launch.instance.defines if name not in COMMON]
    return " ".join([launch.name, *macros])


def _row(name: str, flops: int, target: str, e: Estimate) -> tuple[str, ...]:
    busy = e.busy
    shares = (busy.matrix, busy.valu, e.copies, busy.exp, busy.lds, busy.l1, busy.l2, busy.memory)
    return (
        name, target, str(e.kernel.vgprs), str(e.kernel.lds), f"{e.kernel.waves:g}",
        f"{e.microseconds:.1f}", f"{100 * e.of_matrix_peak:.1f}" if flops else "-",
        f"{100 * e.of_bandwidth:.1f}" if not flops else "-", e.limit,
        *(f"{share:.2f}" for share in shares), f"{e.fetched:.1f}",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
