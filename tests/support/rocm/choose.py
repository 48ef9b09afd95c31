"""Print which operations `--device auto` chooses, and its notes except the one about hipBLASLt."""

from gpt.ops import select


def main() -> None:
    ops = select()
    print(ops.description, *(note for note in ops.notes if "hipblaslt" not in note), sep="\n")
