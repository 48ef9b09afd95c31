"""Write gpt/tokenizer/unicode_table.py: letters, their cases, marks and numbers, in one fixed version of Unicode.

    pip install unicodedata2==16.0.0; python data/make_unicode_table.py > gpt/tokenizer/unicode_table.py

The `byte` tokenizer cuts text between characters of different classes. If the classes came from an installed library,
its next version could give the same text other ids. Hugging Face's tokenizers 0.23 has Unicode 16.0.0 too.
"""

import textwrap
from itertools import groupby

import unicodedata2  # type: ignore[import-not-found]  # installed only to write the table

WIDTH = 118


def ranges(*categories: str) -> str:
    """The code points whose general category begins with one of these, as hexadecimal ranges: "41-5a 61-7a aa"."""
    found = []
    for belongs, run in groupby(
        range(0x110000), lambda point: unicodedata2.category(chr(point)).startswith(categories)
    ):
        if belongs:
            points = list(run)
            first, last = points[0], points[-1]
            found.append(f"{first:x}-{last:x}" if last > first else f"{first:x}")
    return " ".join(found)


def main() -> None:
    print('"""Unicode\'s letters, marks and numbers as ranges of code points, by data/make_unicode_table.py."""\n')
    print(f'UNICODE_VERSION = "{unicodedata2.unidata_version}"')
    for name, categories in (
        ("LETTERS", ("L",)),
        ("UPPERS", ("Lu", "Lt")),
        ("LOWERS", ("Ll",)),
        ("MARKS", ("M",)),
        ("NUMBERS", ("N",)),
    ):
        print(f'\n{name} = """')
        print("\n".join(textwrap.wrap(ranges(*categories), WIDTH, break_on_hyphens=False)))
        print('"""')


if __name__ == "__main__":
    main()
