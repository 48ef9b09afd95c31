"""`--shuffle-documents`: the documents of a token file, in an order that a seed decides.

The order is drawn like that of the windows of a pass (gpt/batches.py). It depends on the seed and on the number of
documents alone, so it is the same on every machine, and it takes no memory for the documents. Where they end is
written to a file and mapped, and so is the text.
"""

import hashlib
from pathlib import Path

import numpy as np

from gpt.batches import Shuffle, philox
from gpt.system.files import remove

_TOKENS_AT_ONCE = 1 << 24  # that the search for ends of documents reads
_DOCUMENTS_AT_ONCE = 1 << 16  # whose places are drawn


def shuffle_documents(source: Path, target: Path, dtype: np.dtype, mark: int, seed: int) -> "hashlib._Hash":
    """Write the documents of the token file `source` to the new file `target`, and return the SHA-256 of its bytes.

    Each document ends with the id `mark`, the last one too. Raises OSError.

    Example: with 0 as mark, the documents 1 0, 2 3 0, 0 and 4 0.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source, target = Path(folder, "tokens.bin"), Path(folder, "shuffled.bin")
    ...     np.array([1, 0, 2, 3, 0, 0, 4, 0], "<u2").tofile(source)
    ...     _ = shuffle_documents(source, target, np.dtype("<u2"), mark=0, seed=7)
    ...     np.fromfile(target, "<u2").tolist()
    [1, 0, 4, 0, 2, 3, 0, 0]
    """
    places, digest = target.with_name(f"{target.name}.ends"), hashlib.sha256()
    tokens = np.asarray(np.memmap(source, dtype, "r"))  # an array is cut faster than a memmap
    with open(places, "wb") as file:
        for first in range(0, len(tokens), _TOKENS_AT_ONCE):
            found = np.flatnonzero(tokens[first : first + _TOKENS_AT_ONCE] == mark)
            (found + first + 1).astype(np.int64).tofile(file)
    ends = np.asarray(np.memmap(places, np.int64, "r"))
    order = Shuffle(len(ends), philox(seed, 0))
    with open(target, "wb") as file:
        for first in range(0, len(ends), _DOCUMENTS_AT_ONCE):
            numbers = order[np.arange(first, min(first + _DOCUMENTS_AT_ONCE, len(ends)), dtype=np.int64)]
            begins = np.where(numbers > 0, ends[numbers - 1], 0)
            for begin, end in zip(begins.tolist(), ends[numbers].tolist(), strict=True):
                document = tokens[begin:end].data
                file.write(document)
                digest.update(document)
    del ends  # Windows removes no file that is mapped
    remove(places)
    return digest
