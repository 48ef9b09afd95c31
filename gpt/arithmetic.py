"""Division that rounds up."""


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up: ceil_div(7, 3) is 3."""
    return -(-a // b)


def round_up(size: int, multiple: int) -> int:
    """The least multiple of `multiple` that is at least `size`: round_up(130, 128) is 256."""
    return ceil_div(size, multiple) * multiple
