"""The tokenizer that a run gets: one that has yet to learn, one that the user gives, or the run's own."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gpt import chat_template, provenance
from gpt.config import DATA_PATH, TOKENIZERS, DataConfig, TokenizerConfig, flag, pick
from gpt.corpus.sources import Texts
from gpt.errors import UserError, shown
from gpt.provenance import Info, Report
from gpt.run import Run
from gpt.tokenizer import Tokenizer

MARKERS = tuple(chat_template.MARKERS.values())  # the special tokens that conversations need

_GPT2 = Path(DATA_PATH).with_name("gpt2")  # where `hipgpt fetch` puts GPT-2's vocabulary


@dataclass(frozen=True)
class Wanted:
    """The tokenizer that the user asks for: with these settings, and those of the preset, or the `given` one.

    `settings` are those fields of TokenizerConfig that the user's flags set. If `kind` is a path, the tokenizer that
    lies there is `given`.
    """

    settings: Mapping[str, Any]
    preset: str | None = None
    given: Tokenizer | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any], preset: str | None) -> "Wanted":
        """Raises UserError if the tokenizer that --tokenizer names by its path cannot be used."""
        return cls(settings, preset, _given_by(settings))

    @property
    def is_any(self) -> bool:
        """Whether the user asks for no tokenizer in particular."""
        return self.preset is None and not self.settings

    def blank(self, info: Info | None, markers: Sequence[str]) -> Tokenizer:
        """A tokenizer that has yet to learn, with the settings that `prepare` describes, and these special tokens."""
        config = TokenizerConfig.of(self.preset)
        if info is not None and self.preset is None:
            config = TokenizerConfig(**pick(TokenizerConfig, info["tokenizer"]))
            config = replace(config, special_tokens=tuple(config.special_tokens))
            if config.kind != self.settings.get("kind", config.kind):
                config = replace(config, split=None, keep_newlines=False)  # they belong to a kind
        config = replace(config, **self.settings)
        return Tokenizer(
            config.vocab_limit, config.kind, split=config.split, keep_newlines=config.keep_newlines,
            special_tokens=tuple(dict.fromkeys((*config.special_tokens, *markers))),
        )  # fmt: skip

    def kept(self, run: Run, info: Info | None, otherwise: str, report: Report) -> Tokenizer:
        """The run's own tokenizer. Raises UserError, with the advice `otherwise`, if it is not the wanted one.

        It must also be the one that tokens.json, `info`, knows.
        """
        if info is not None and (now := provenance.sha256(run.tokenizer_path)) != (then := info["tokenizer"]["sha256"]):
            raise UserError(
                f"{run.tokenizer_path} is not the tokenizer that {run.tokens_path.name} was made with "
                f"(sha256 {then:.12}… then, {now:.12}… now): put that one back, or {otherwise}"
            )
        tokenizer = Tokenizer.load(run.tokenizer_path)
        if self.given is not None:
            if tokenizer not in (self.given, self.given.with_special_tokens(MARKERS)):
                raise UserError(
                    f"--tokenizer is {self.settings['kind']}, but {run.tokenizer_path} is another one: leave it out, "
                    f"or {otherwise}"
                )
            return tokenizer
        for key, wanted in self.settings.items():
            value = getattr(tokenizer, key)
            got_markers = key == "special_tokens" and value == tuple(dict.fromkeys((*wanted, *MARKERS)))
            if wanted != value and not got_markers:
                raise UserError(
                    f"{flag(key)} is {wanted}, but {run.tokenizer_path} has {value}: leave it out, or {otherwise}"
                )
        if self.preset is not None:
            special = tuple(text for text in tokenizer.special_tokens if text not in MARKERS)
            self._check_preset(run, replace(tokenizer.config, special_tokens=special), otherwise, report)
        return tokenizer

    def _check_preset(self, run: Run, used: TokenizerConfig, otherwise: str, report: Report) -> None:
        """Compare the tokenizer that a run has with the preset's; settings that the user asks for do not count.

        Raises UserError if they differ and the run's is the default one, which hardly anybody chose. Any other
        tokenizer was chosen: it is kept, and the difference is reported.
        """
        wanted = TokenizerConfig.of(self.preset)
        if {**asdict(wanted), **{key: getattr(used, key) for key in self.settings}} == asdict(used):
            return
        has, wants = f"run {run.name} has a {used}", f"--preset {self.preset} has a {wanted}"
        if used == TokenizerConfig.of(None):
            keep = f"--tokenizer {used.kind} --vocab-size {used.vocab_limit}"
            raise UserError(f"{has}, but {wants}: keep the run's with {keep}, or {otherwise}")
        report(f"Note: {has} and keeps it; {wants}")


def _given_by(settings: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer that --tokenizer names by its path, if it does. Raises UserError if it cannot be used."""
    path = settings.get("kind", TOKENIZERS[0])
    if path in TOKENIZERS:
        return None
    if path == _GPT2.name and not os.path.exists(path):
        if not _GPT2.exists():
            raise UserError(f"--tokenizer {path} is not here yet: `hipgpt fetch gpt2-tokenizer` gets it")
        path = _GPT2
    if not os.path.exists(path):
        raise UserError(
            f"--tokenizer is {shown(path)}, but must be one of {', '.join(TOKENIZERS)}, or a tokenizer.json that exists"
        )
    if others := [flag(key) for key in settings if key != "kind"]:
        raise UserError(f"{others[0]} goes with a tokenizer that is learned, but --tokenizer is {path}: leave it out")
    return Tokenizer.load(path)


def grown(tokenizer: Tokenizer, texts: Texts) -> Tokenizer:
    """The tokenizer itself, or with the markers of conversations if it lacks them and the texts have conversations."""
    if not texts.with_conversations or chat_template.is_used_by(tokenizer):
        return tokenizer
    return tokenizer.with_special_tokens(MARKERS)


def check_model(run: Run, reset: bool) -> None:
    """Raises UserError if the run has a model, and its tokenizer is missing or would be replaced."""
    if run.has_weights and reset:
        raise UserError(
            f"--reset would replace the tokenizer that the checkpoints of run {run.name} need: take another --run-name"
        )
    if run.has_weights and not run.tokenizer_path.exists():
        raise UserError(
            f"{run.tokenizer_path} is missing, and the run's checkpoints are of no use without it: "
            "put it back, or take another --run-name"
        )


def check_sample(data: DataConfig, info: Info | None, is_kept: bool, given: Tokenizer | None, otherwise: str) -> None:
    """Raises UserError if --sample is given, but the tokenizer is not to learn, or has learned from another sample."""
    if data.sample is None:
        return
    if is_kept and data.sample != (used := info["tokenizer"].get("sample") if info else None):
        learned = "all of its text" if used is None else f"a sample of {used}"
        raise UserError(
            f"--sample is {data.sample}, but the run's tokenizer was not learned from it, but from {learned}: leave it "
            f"out, or {otherwise}"
        )
    if given is not None and not is_kept:
        raise UserError(f"--sample {data.sample} goes with a tokenizer that is learned, not with a path: leave it out")
