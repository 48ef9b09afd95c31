"""Small models to import, export, tune and evaluate: made of noise, so that every weight matters."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpt import checkpoint
from gpt.checkpoint import Checkpoint
from gpt.config import ModelConfig, TrainConfig
from gpt.initialization import initial_weights
from gpt.optim import optimizer_shapes
from gpt.run import Run
from gpt.tokenizer import Tokenizer

TEXT = "the cat sat on the mat and the dog sat on the log . naïve 日本語 ends here .\n" * 3
SHAPE = {"max_seq_len": 24, "embed_dim": 12, "num_heads": 3, "ff_hidden_dim": 20, "num_layers": 2}
NOISE = 0.4  # large enough that the two forms of GELU differ by more than the tolerance


def tokenizer(kind: str = "byte", special_tokens: Sequence[str] = ()) -> Tokenizer:
    """A tokenizer that has learned TEXT."""
    made = Tokenizer(300, kind, special_tokens=special_tokens)
    made.train_bpe(TEXT)
    return made


def saved_run(
    root: Path, kind: str = "byte", name: str = "r", special_tokens: Sequence[str] = (), **changes
) -> Checkpoint:
    """A run under `root` with the checkpoint of an untrained model: saved_run(tmp_path, tie_embeddings=False)."""
    run, made = Run(name, root), tokenizer(kind, special_tokens)
    run.path.mkdir(parents=True)
    made.save(run.tokenizer_path)
    config = ModelConfig(vocab_size=made.vocab_size, **(SHAPE | changes))
    draw = np.random.default_rng(2)
    weights = {
        name: (tensor + NOISE * draw.standard_normal(tensor.shape)).astype(np.float32)  # no bias is 0, no norm is 1
        for name, tensor in initial_weights(config, seed=1)
    }
    shapes = optimizer_shapes(config, "adamw")
    optimizer = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    counters = {"adam_step": 0, "skipped": 0, "skipped_in_a_row": 0}
    return checkpoint.save(run, 3, config, TrainConfig(), weights, optimizer, counters)
