"""The plan itself: the text is tokenized, and the model fits its tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gpt.batches import Batches
from gpt.checkpoint import Checkpoint
from gpt.config import DataConfig, ModelConfig, TokenizerConfig, TrainConfig, pick
from gpt.distributed.ranks import ALONE, Ranks
from gpt.errors import UserError
from gpt.generate import prompt_ids
from gpt.prepare import Corpus, adopt, adopt_tokenizer, is_text_of, prepare
from gpt.pretrained import Pretrained
from gpt.run import Run
from gpt.system.console import Console
from gpt.tokenizer import Tokenizer, lost_note


@dataclass(frozen=True)
class Plan:
    """A run that is ready to train.

    `start` is the checkpoint to continue, None for a new run. `origin` is the model whose weights and tokenizer a new
    run begins with, None for random weights.
    """

    run: Run
    model_config: ModelConfig
    train_config: TrainConfig
    corpus: Corpus
    batches: Batches
    start: Checkpoint | None
    origin: Pretrained | None = None

    @property
    def first_step(self) -> int:
        return self.start.step + 1 if self.start else 1


def make(
    run: Run, start: Checkpoint | None, model: ModelConfig, train: TrainConfig, *, flags: Mapping[str, Any],
    preset: str | None, reset: bool, console: Console, ranks: Ranks = ALONE, origin: Pretrained | None = None,
) -> Plan:  # fmt: skip
    """Tokenize the text if necessary, and fit the model to the tokenizer. The first rank holds the run's lock.

    All `ranks` call this, but only the first one changes the run's files. A new tokenizer gets its settings from the
    explicit `flags`, then from the preset; `origin` brings its own. Raises UserError if the text, the tokenizer and the
    checkpoint do not fit together; a run that had no tokenizer then has none.
    """
    if reset and (start or origin):
        whose = "the checkpoint's" if start else "that of --from"
        raise UserError(f"--reset would make another tokenizer than {whose}: leave it out, or train a new run")
    is_new, data = not run.tokenizer_path.exists(), DataConfig(**pick(DataConfig, flags))
    try:
        if start and start.run.path != run.path and ranks.is_first:
            adopt(start.run, run, with_tokens=not (data.data_path or data.tokens))
        if origin and ranks.is_first:
            adopt_tokenizer(origin.tokenizer, run, origin.name)
        corpus = prepare(
            run, data=data, preset=None if start else preset, reset=reset, report=console.line,
            progress=console.progress, ranks=ranks, may_grow=start is None, **pick(TokenizerConfig, flags),
        )  # fmt: skip
        train = _holding_out(train, flags, start, corpus)
        if start:
            train = _on_its_text(train, start, corpus)
        batches = Batches(
            corpus.tokens, train.batch_size, model.max_seq_len,
            sampling=train.sampling, seed=train.seed, val_fraction=train.val_fraction,
            accumulate=train.accumulate, counted=corpus.counted,
        )  # fmt: skip
        if train.sample_prompt is not None:
            _check_prompt(train.sample_prompt, corpus.tokenizer, console)
    except UserError:
        if is_new and ranks.is_first:
            run.discard_tokens()
        raise
    vocab_size = corpus.tokenizer.vocab_size
    if start:
        start.model_config.check_tokenizer(run.tokenizer_path, vocab_size)
    if origin:
        origin = origin.grown([corpus.tokenizer.decode([id]) for id in range(origin.config.vocab_size, vocab_size)])
    return Plan(run, replace(model, vocab_size=vocab_size), train, corpus, batches, start, origin)


def _holding_out(train: TrainConfig, flags: Mapping[str, Any], start: Checkpoint | None, corpus: Corpus) -> TrainConfig:
    """`train` with the held-out text of the corpus, if that has one of its own.

    Raises UserError if the user has also given --val-fraction.
    """
    if corpus.val_fraction is None:
        return train
    if "val_fraction" in flags:
        other = "--val-tokens" if "token_files" in corpus.info else "--val-path"
        raise UserError(f"--val-fraction and {other} both say what is held out: leave --val-fraction out")
    unseen = train.unseen_fraction if start else corpus.val_fraction
    return replace(train, val_fraction=corpus.val_fraction, unseen_fraction=unseen)


def _check_prompt(prompt: str, tokenizer: Tokenizer, console: Console) -> None:
    """Raises UserError if a model cannot go on from --sample-prompt. Prints a note if a part of it is unknown."""
    prompt_ids(tokenizer, prompt, "--sample-prompt")
    if unknown := tokenizer.unknown(prompt):
        console.line(f"Note: {lost_note('--sample-prompt', unknown, len(prompt))}")


def _on_its_text(train: TrainConfig, start: Checkpoint, corpus: Corpus) -> TrainConfig:
    """`train` with the step after which its text began, and the share of the text that no step has trained on.

    A text other than the checkpoint's is read from its beginning.
    """
    if not is_text_of(start.run, corpus):
        return replace(train, text_start=start.step, unseen_fraction=train.val_fraction)
    return replace(train, unseen_fraction=min(start.train_config.unseen, train.val_fraction))
