"""Check hipBLASLt on the products of the tiny model's training, and print its notes and whether it is used."""

from gpt.ops import select
from tests.support.rocm.tiny import BATCH, CONFIG


def main(blas: str) -> None:
    ops = select("gpu", "bf16", blas=blas)
    ops.check_products(CONFIG, BATCH, training=True, stacks=[(1, 32, 96), (1, 64, 32)])
    print(*ops.notes, f"used: {ops.has_vendor_blas}", sep="\n")
