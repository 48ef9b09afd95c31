"""The tokenizer that a run gets: one that has yet to learn, one that the user gives, or the run's own."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
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


def blank(info: Info | None, preset: str | None, asked: Mapping[str, Any], markers: Sequence[str]) -> Tokenizer:
    """A tokenizer that has yet to learn, with the settings that `prepare` describes, and these special tokens."""
    config = TokenizerConfig.of(preset)
    if info is not None and preset is None:
        config = TokenizerConfig(**pick(TokenizerConfig, info["tokenizer"]))
        config = replace(config, special_tokens=tuple(config.special_tokens))
    if info is not None and preset is None and config.kind != asked.get("kind", config.kind):
        config = replace(config, split=None, keep_newlines=False)  # they belong to a kind
    config = replace(config, **asked)
    special_tokens = tuple(dict.fromkeys((*config.special_tokens, *markers)))
    return Tokenizer(config.vocab_limit, config.kind, split=config.split, special_tokens=special_tokens,
                     keep_newlines=config.keep_newlines)  # fmt: skip


def given_by(asked: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer that --tokenizer names by its path, if it does. Raises UserError if it cannot be used."""
    path = asked.get("kind", TOKENIZERS[0])
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
    if others := [flag(key) for key in asked if key != "kind"]:
        raise UserError(f"{others[0]} goes with a tokenizer that is learned, but --tokenizer is {path}: leave it out")
    return Tokenizer.load(path)


def grown(tokenizer: Tokenizer, texts: Texts) -> Tokenizer:
    """The tokenizer itself, or with the markers of conversations if it lacks them and the texts have conversations."""
    if not texts.with_conversations or chat_template.is_used_by(tokenizer):
        return tokenizer
    return tokenizer.with_special_tokens(MARKERS)


def kept(
    run: Run, info: Info | None, preset: str | None, asked: Mapping[str, Any], given: Tokenizer | None, otherwise: str,
    report: Report,
) -> Tokenizer:  # fmt: skip
    """The run's own tokenizer. Raises UserError if tokens.json, a flag or the preset contradicts it."""
    if info is not None and (now := provenance.sha256(run.tokenizer_path)) != (then := info["tokenizer"]["sha256"]):
        raise UserError(
            f"{run.tokenizer_path} is not the tokenizer that {run.tokens_path.name} was made with "
            f"(sha256 {then:.12}… then, {now:.12}… now): put that one back, or {otherwise}"
        )
    tokenizer = Tokenizer.load(run.tokenizer_path)
    if given is not None:
        if tokenizer not in (given, given.with_special_tokens(MARKERS)):
            raise UserError(
                f"--tokenizer is {asked['kind']}, but {run.tokenizer_path} is another one: leave it out, or {otherwise}"
            )
        return tokenizer
    for key, wanted in asked.items():
        value = getattr(tokenizer, key)
        got_markers = key == "special_tokens" and value == tuple(dict.fromkeys((*wanted, *MARKERS)))
        if wanted != value and not got_markers:
            raise UserError(
                f"{flag(key)} is {wanted}, but {run.tokenizer_path} has {value}: leave it out, or {otherwise}"
            )
    if preset is not None:
        special = tuple(text for text in tokenizer.special_tokens if text not in MARKERS)
        _check_preset(run, replace(tokenizer.config, special_tokens=special), preset, asked, otherwise, report)
    return tokenizer


def _check_preset(
    run: Run, used: TokenizerConfig, preset: str, asked: Mapping[str, Any], otherwise: str, report: Report
) -> None:
    """Compare the tokenizer that a run has with the preset's; settings that the user `asked` for do not count.

    Raises UserError if they differ and the run's is the default one, which hardly anybody chose. Any other tokenizer
    was chosen: it is kept, and the difference is reported.
    """
    wanted = TokenizerConfig.of(preset)
    if {**asdict(wanted), **{key: getattr(used, key) for key in asked}} == asdict(used):
        return
    has, wants = f"run {run.name} has a {used}", f"--preset {preset} has a {wanted}"
    if used == TokenizerConfig.of(None):
        keep = f"--tokenizer {used.kind} --vocab-size {used.vocab_limit}"
        raise UserError(f"{has}, but {wants}: keep the run's with {keep}, or {otherwise}")
    report(f"Note: {has} and keeps it; {wants}")


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
