"""A run takes over the tokenizer, and perhaps the tokens, of the model that it starts from."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from gpt import provenance
from gpt.errors import UserError
from gpt.prepare.tokenizers import MARKERS
from gpt.run import Run
from gpt.system.files import atomic_path, write_atomically
from gpt.system.reading import raise_unless_regular
from gpt.tokenizer import Tokenizer


def adopt(source: Run, run: Run, *, with_tokens: bool) -> None:
    """Give `run` the tokenizer of `source`, and its tokens too unless another text is to be encoded.

    The caller holds the lock of `run`. Raises UserError if `source` has no tokenizer, or `run` another one.
    """
    if not source.tokenizer_path.exists():
        raise UserError(f"{source.tokenizer_path} is missing, and the checkpoint is of no use without it: put it back")
    if not run.tokenizer_path.exists():
        _copy(source.tokenizer_path, run.tokenizer_path)
    elif not _is_same(run.tokenizer_path, source.tokenizer_path):
        raise UserError(f"run {run.name} has another tokenizer than {source.path}: take another --run-name")
    info = provenance.read(source)
    if with_tokens and info is not None and not run.tokens_info_path.exists():
        if source.tokens_path.exists():
            _copy(source.tokens_path, run.tokens_path)
        if source.counted_path.exists():
            _copy(source.counted_path, run.counted_path)
        write_atomically(run.tokens_info_path, provenance.to_json(provenance.moved(info, source, run)))


def adopt_tokenizer(tokenizer: Tokenizer, run: Run, source: str) -> None:
    """Give `run` the tokenizer of the model `source`. The caller holds the lock of `run`.

    Raises UserError if it has another one already. It may be the same with the markers of conversations.
    """
    if not run.tokenizer_path.exists():
        tokenizer.save(run.tokenizer_path)
    elif Tokenizer.load(run.tokenizer_path) not in (tokenizer, tokenizer.with_special_tokens(MARKERS)):
        raise UserError(f"run {run.name} has another tokenizer than {source}: take another --run-name")


def _is_same(first: Path, second: Path) -> bool:
    """Whether two files have the same content. Raises UserError if one is not a regular file."""
    for path in (first, second):
        raise_unless_regular(path)
    return first.read_bytes() == second.read_bytes()


def _copy(source: Path, target: Path) -> None:
    """Raises UserError if `source` is not a regular file: a device might have no end."""
    raise_unless_regular(source)
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
        stat = source.stat()
        with suppress(OSError):  # keep the modification time, by which a file counts as unchanged
            os.utime(temporary, ns=(stat.st_atime_ns, stat.st_mtime_ns))
