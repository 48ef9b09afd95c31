"""From a text to tokenizer.json, tokens.bin and tokens.json, and checks that the three still belong together.

tokens.bin is raw little-endian uint16 (uint32 once the vocabulary passes 65,536), as np.memmap and nanoGPT read it.
tokens.json records the origin of tokens.bin (gpt/provenance.py). Tokens that no longer match are refused, never
returned.

This module decides what has to be done. texts.py finds the texts, tokenizers.py the tokenizer, tokens.py opens and
checks the tokens that are there, and making.py makes new ones. adoption.py gives a run those of another one.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from gpt import provenance, readymade
from gpt.config import DataConfig
from gpt.corpus.sources import Texts, few
from gpt.corpus.standard_input import copied
from gpt.distributed.ranks import ALONE, Ranks
from gpt.encode import Progress, encode_part
from gpt.errors import UserError
from gpt.prepare import tokenizers, tokens
from gpt.prepare.adoption import adopt, adopt_tokenizer
from gpt.prepare.making import Maker
from gpt.prepare.texts import found, names_of
from gpt.prepare.tokens import Corpus, is_text_of
from gpt.provenance import Info, Report
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
    asked = {key: value for key, value in asked.items() if value is not None}
    with copied(run, data or DataConfig()) as named:
        corpus = _prepared(run, named, asked, preset, reset, report, progress, ranks, may_grow)
    ranks.share({"made": corpus.info})
    return corpus


def _prepared(
    run: Run, data: DataConfig, asked: Mapping[str, Any], preset: str | None, reset: bool, report: Report,
    progress: Progress, ranks: Ranks, may_grow: bool,
) -> Corpus:  # fmt: skip
    """The tokens of a run, as `prepare` describes, on the first rank."""
    trained = run.has_weights  # then a model exists, and it knows this tokenizer only
    has_tokenizer = run.tokenizer_path.exists()
    if trained and reset:
        raise UserError(
            f"--reset would replace the tokenizer that the checkpoints of run {run.name} need: take another --run-name"
        )
    if trained and not has_tokenizer:
        raise UserError(
            f"{run.tokenizer_path} is missing, and the run's checkpoints are of no use without it: "
            "put it back, or take another --run-name"
        )
    otherwise = "take another --run-name" if trained else "make tokenizer and tokens anew with --reset"
    given = tokenizers.given_by(asked)
    info = provenance.read(run)
    if readymade.are_wanted(run, data, info, reset, otherwise):
        return _ready_made(run, data, info, asked, preset, given, reset, otherwise, report, progress)
    if info is not None and "token_files" in info:  # tokens that --reset gives up; their tokenizer may stay
        info = {key: value for key, value in info.items() if key not in ("token_files", "held_out")}
    names = names_of(run, data, info)
    tokenizers.check_sample(data, info, has_tokenizer and not reset, given, otherwise)

    maker = Maker(run, report, progress, ranks)

    def with_own(texts: Texts) -> Corpus:
        """The tokens by the run's own tokenizer, which gets the markers of conversations if it needs and may."""
        grown = tokenizers.grown(tokenizer, texts)
        if grown is tokenizer:
            return maker.with_own(texts, tokenizer, info)
        if trained or not may_grow:
            raise UserError(
                f"{few(texts.with_conversations)} holds conversations, but the tokenizer of the model lacks "
                f"{', '.join(tokenizers.MARKERS)}: begin a new run with --from, whose model gets them"
            )
        return maker.with_given(texts, grown)

    if reset or not has_tokenizer:
        if info is not None and info["tokenizer"].get("given") and preset is None and not asked:
            if not has_tokenizer:
                raise UserError(f"{run.tokenizer_path} is missing, and was given: put it back, or give --tokenizer")
            given = Tokenizer.load(run.tokenizer_path)  # nothing that the run knows could learn it again
        if given is not None:
            texts = found(run, names, data, info, report)
            return maker.with_given(texts, tokenizers.grown(given, texts))
        if not reset and (info is not None or run.tokens_path.exists()):
            report(f"Note: {run.tokenizer_path} is missing, so tokenizer and tokens are made anew")
        texts = found(run, names, data, info, report)
        markers = tokenizers.MARKERS if texts.with_conversations else ()
        return maker.with_new(texts, tokenizers.blank(info, preset, asked, markers))
    tokenizer = tokenizers.kept(run, info, preset, asked, given, otherwise, report)
    if info is None:
        lost = f"{run.tokens_info_path} is missing or damaged" if run.tokens_path.exists() else "there are no tokens"
        texts = found(run, names, data, None, report)
        report(f"Note: {lost}: encoding {texts.train.name} with the run's tokenizer, {run.tokenizer_path}")
        return with_own(texts)
    current = {
        **info,
        **provenance.check_text(run, data, info, otherwise, report),
        **provenance.check_held_out(run, data, info, otherwise, report),
    }
    if not run.tokens_path.exists():
        texts = provenance.texts_of(run, current)
        report(f"Note: {run.tokens_path} is missing: encoding {texts.train.name} again")
        return with_own(texts)
    return tokens.kept(run, ", ".join(names), tokenizer, info, current, report)


def _ready_made(
    run: Run, data: DataConfig, info: Info | None, asked: Mapping[str, Any], preset: str | None,
    given: Tokenizer | None, reset: bool, otherwise: str, report: Report, progress: Progress,
) -> Corpus:  # fmt: skip
    """The tokens that --tokens names, or has named."""
    is_there = run.tokenizer_path.exists()
    if is_there and not reset:
        tokenizer = tokenizers.kept(run, info, preset, asked, given, otherwise, report)
        if info is not None:
            return tokens.opened(run, tokenizer, readymade.recheck(run, data, info, otherwise, report))
    elif given is not None:
        tokenizer = given
    elif is_there and info is not None and not asked:
        tokenizer = Tokenizer.load(run.tokenizer_path)
    else:
        raise UserError(readymade.NO_TOKENIZER)
    is_new = reset or not is_there
    return tokens.opened(run, tokenizer, readymade.record(run, data, info, tokenizer, is_new, progress))


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
