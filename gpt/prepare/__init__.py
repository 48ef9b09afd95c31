"""From a text to tokenizer.json, tokens.bin and tokens.json, and checks that the three still belong together.

tokens.bin is raw little-endian uint16 (uint32 once the vocabulary passes 65,536), as np.memmap and nanoGPT read it.
tokens.json records the origin of tokens.bin (gpt/provenance). Tokens that no longer match are refused, never
returned.

preparation.py decides which of these steps a run needs: texts.py finds the texts, tokenizers.py finds the tokenizer,
tokens.py opens and checks the tokens of the run, making.py makes new ones, readymade.py takes those of another program,
adoption.py those of another run.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gpt import provenance
from gpt.config import DataConfig
from gpt.corpus.standard_input import copied
from gpt.distributed.ranks import ALONE, Ranks
from gpt.encode import Progress, encode_part
from gpt.errors import UserError
from gpt.prepare import tokens
from gpt.prepare.adoption import adopt, adopt_tokenizer
from gpt.prepare.making import Maker
from gpt.prepare.preparation import Preparation
from gpt.prepare.tokenizers import Wanted, check_model
from gpt.prepare.tokens import Corpus, is_text_of
from gpt.provenance import Report
from gpt.run import Run
from gpt.tokenizer import Tokenizer

__all__ = ["Corpus", "adopt", "adopt_tokenizer", "is_text_of", "prepare"]


@contextmanager
def _silent(name: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda completed: None


def prepare(
    run: Run,
    *,
    data: DataConfig | None = None,
    preset: str | None = None,
    reset: bool = False,
    report: Report = print,
    progress: Progress = _silent,
    ranks: Ranks = ALONE,
    may_grow: bool = True,
    **asked: Any,
) -> Corpus:
    """The tokens of a run: those on disk if they still match, else made from the text. The caller holds the run's lock.

    All `ranks` call this, and each encodes a range of the text; the rest is up to the first one, which alone needs the
    lock and the other arguments. The files do not depend on the number of ranks.

    `data` and those fields of TokenizerConfig that were `asked` for are the user's flags. A run that has a tokenizer
    keeps it. A `kind` that is a path gives the run the tokenizer that lies there. A new tokenizer takes each setting
    from the flag, else from the `preset`, else from the run's earlier tokenizer, else from the defaults. `reset` makes
    tokenizer and tokens anew. `report` takes one line for the user; `progress(name, total)` yields a function that
    takes the number of bytes done so far. If the text has conversations and the tokenizer lacks their markers, it gets
    them, unless a model knows it already, or it `may_grow` no more.
    Raises UserError if the text, the tokenizer, tokens.bin or a flag contradicts the run's records, if the preset
    contradicts a default tokenizer, if a run that has checkpoints would need a new tokenizer, and for a text that
    cannot be used. An error leaves the three files as they were. If it comes on one rank, ending the others is up to
    the caller.
    """
    if not ranks.is_first:
        return _helped(run, ranks)
    settings = {key: value for key, value in asked.items() if value is not None}
    with copied(run, data or DataConfig()) as named:
        check_model(run, reset)
        wanted = Wanted.of(settings, preset)
        corpus = Preparation(run, named, wanted, reset, may_grow, Maker(run, report, progress, ranks)).corpus()
    ranks.share({"made": corpus.info})
    return corpus


def _helped(run: Run, ranks: Ranks) -> Corpus:
    """Encode a range of the text, if the first rank asks for it, and return the same corpus as there."""
    tokenizer = None
    while "made" not in (asked := ranks.share()):
        tokenizer = encode_part(run, asked, ranks)
    info, advice = asked["made"], "put --runs-dir on a file system that all ranks share, or copy that rank's run"
    if provenance.sha256(run.tokenizer_path) != info["tokenizer"]["sha256"]:
        raise UserError(f"{run.tokenizer_path} is another tokenizer than the first rank's: {advice}")
    provenance.check_tokens(run, info, "is not the first rank's", advice)
    return tokens.opened(run, tokenizer or Tokenizer.load(run.tokenizer_path), info)
