"""The settings of a model, of its training, of a tokenizer and of sampling: checked dataclasses with every default.

Defaults stand here and nowhere else; the command line shows them in its help. The keys of a config JSON file are
HipGPT's own (`embed_dim`, `num_heads`, …), so that programs that read HipGPT's files find them. The command line's
flags are shorter (`--dim`, `--heads`, …): see `FLAGS` in fields.py.

    model.py      the shape of a model
    training.py   a training, and how values that nobody gave are computed
    data.py       the text and its tokenizer
    sampling.py   how generation chooses the next token
    presets.py    settings that go together
    fields.py     flags and allowed values of all of them
"""

from gpt.config.data import DATA_PATH, RUNS_DIR, RUNS_DIR_VARIABLE, DataConfig, TokenizerConfig
from gpt.config.fields import (
    CHOICES,
    NOT_CHOSEN,
    OPTIMIZERS,
    PRECISIONS,
    SAMPLINGS,
    SPLITS,
    TOKENIZERS,
    check,
    flag,
    pick,
    types_of,
)
from gpt.config.model import ModelConfig
from gpt.config.presets import LORA, PRESETS, RATES, TUNING, TUNING_RATES
from gpt.config.sampling import NO_EOS, NUM_TOKENS, SamplingConfig
from gpt.config.training import LEARNING_RATES, LONGEST_WARMUP, WARMUPS, TrainConfig

__all__ = [
    "CHOICES", "DATA_PATH", "LEARNING_RATES", "LONGEST_WARMUP", "LORA", "NOT_CHOSEN", "NO_EOS", "NUM_TOKENS",
    "OPTIMIZERS", "PRECISIONS", "PRESETS", "RATES", "RUNS_DIR", "RUNS_DIR_VARIABLE", "SAMPLINGS", "SPLITS",
    "TOKENIZERS", "TUNING", "TUNING_RATES", "WARMUPS", "DataConfig", "ModelConfig", "SamplingConfig",
    "TokenizerConfig", "TrainConfig", "check", "flag", "pick", "types_of",
]  # fmt: skip
