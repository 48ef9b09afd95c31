"""The decision what has to be done for the tokens of a run: nothing, because they are there, or which ones are made."""

from collections.abc import Sequence

from gpt import provenance
from gpt.config import DataConfig
from gpt.corpus.sources import Texts, few
from gpt.errors import UserError
from gpt.prepare import readymade, texts, tokens
from gpt.prepare.making import Maker
from gpt.prepare.tokenizers import MARKERS, Wanted, check_sample, grown
from gpt.prepare.tokens import Corpus
from gpt.provenance import Info
from gpt.run import Run
from gpt.tokenizer import Tokenizer


class Preparation:
    """A call of `prepare` on the first rank, whose docstring describes the arguments; `maker` makes new files."""

    def __init__(self, run: Run, data: DataConfig, wanted: Wanted, reset: bool, may_grow: bool, maker: Maker) -> None:
        self.run, self.data, self.wanted, self.reset, self.may_grow = run, data, wanted, reset, may_grow
        self.maker, self.report = maker, maker.report
        self.info: Info | None = provenance.read(run)
        self.is_trained = run.has_weights  # then a model exists, and it knows the run's tokenizer only
        self.has_tokenizer = run.tokenizer_path.exists()
        # The end of a message about flags that contradict what the run has
        self.otherwise = "take another --run-name" if self.is_trained else "make tokenizer and tokens anew with --reset"

    def corpus(self) -> Corpus:
        """The tokens of the run: those of --tokens, or new ones, or those on disk if they still match."""
        if readymade.are_wanted(self.run, self.data, self.info, self.reset, self.otherwise):
            return self._ready_made()
        if self.info is not None and "token_files" in self.info:  # --reset gives them up; their tokenizer may stay
            self.info = {key: value for key, value in self.info.items() if key not in ("token_files", "held_out")}
        names = texts.names_of(self.run, self.data, self.info)
        keeps_tokenizer = self.has_tokenizer and not self.reset
        check_sample(self.data, self.info, keeps_tokenizer, self.wanted.given, self.otherwise)
        return self._by_own_tokenizer(names) if keeps_tokenizer else self._by_another_tokenizer(names)

    def _ready_made(self) -> Corpus:
        """The tokens that --tokens names, or has named."""
        run, data, info, maker = self.run, self.data, self.info, self.maker
        if self.has_tokenizer and not self.reset:
            tokenizer = self.wanted.kept(run, info, self.otherwise, self.report)
            if info is not None:
                return tokens.opened(run, tokenizer, readymade.recheck(run, data, info, self.otherwise, self.report))
        elif self.wanted.given is not None:
            tokenizer = self.wanted.given
        elif self.has_tokenizer and info is not None and not self.wanted.settings:
            tokenizer = Tokenizer.load(run.tokenizer_path)
        else:
            raise UserError(readymade.NO_TOKENIZER)
        is_new = self.reset or not self.has_tokenizer
        return tokens.opened(run, tokenizer, readymade.record(run, data, info, tokenizer, is_new, maker.progress))

    def _by_another_tokenizer(self, names: Sequence[str]) -> Corpus:
        """New tokens, by a tokenizer that is given or has yet to learn."""
        run, info, given = self.run, self.info, self.wanted.given or self._given_before()
        if given is None and not self.reset and (info is not None or run.tokens_path.exists()):
            self.report(f"Note: {run.tokenizer_path} is missing, so tokenizer and tokens are made anew")
        found = texts.found(run, names, self.data, info, self.report)
        if given is not None:
            return self.maker.with_given(found, grown(given, found))
        return self.maker.with_new(found, self.wanted.blank(info, MARKERS if found.with_conversations else ()))

    def _given_before(self) -> Tokenizer | None:
        """The run's tokenizer, if it was once given and nothing else is wanted: no text could teach it again."""
        if self.info is None or not self.info["tokenizer"].get("given") or not self.wanted.is_any:
            return None
        if not self.has_tokenizer:
            raise UserError(f"{self.run.tokenizer_path} is missing, and was given: put it back, or give --tokenizer")
        return Tokenizer.load(self.run.tokenizer_path)

    def _by_own_tokenizer(self, names: Sequence[str]) -> Corpus:
        """The tokens on disk, or new ones if those are missing or were made from another text."""
        run, info, report = self.run, self.info, self.report
        tokenizer = self.wanted.kept(run, info, self.otherwise, report)
        if info is None:
            lost = (
                f"{run.tokens_info_path} is missing or damaged" if run.tokens_path.exists() else "there are no tokens"
            )
            found = texts.found(run, names, self.data, None, report)
            report(f"Note: {lost}: encoding {found.train.name} with the run's tokenizer, {run.tokenizer_path}")
            return self._encoded(found, tokenizer)
        current = {
            **info,
            **provenance.check_text(run, self.data, info, self.otherwise, report),
            **provenance.check_held_out(run, self.data, info, self.otherwise, report),
        }
        if not run.tokens_path.exists():
            found = provenance.texts_of(run, current)
            report(f"Note: {run.tokens_path} is missing: encoding {found.train.name} again")
            return self._encoded(found, tokenizer)
        return tokens.kept(run, ", ".join(names), tokenizer, info, current, report)

    def _encoded(self, found: Texts, tokenizer: Tokenizer) -> Corpus:
        """New tokens, by the run's own tokenizer, which gets the markers of conversations if it needs and may."""
        with_markers = grown(tokenizer, found)
        if with_markers is tokenizer:
            return self.maker.with_own(found, tokenizer, self.info)
        if self.is_trained or not self.may_grow:
            raise UserError(
                f"there are conversations in {few(found.with_conversations)}, but the tokenizer of the model lacks "
                f"{', '.join(MARKERS)}: begin a new run with --from, whose model gets them"
            )
        return self.maker.with_given(found, with_markers)
