"""Settings that go together: the presets of a whole training, and those of `train --from`."""

from typing import Any

# Settings of `train --from` that differ from the defaults; docs/recipes.md has the sweep.
TUNING: dict[str, Any] = {
    "optimizer": "muon", "schedule": "trapezoid", "min_lr": 0.0, "total_steps": 500, "eval_every": 50,
}  # fmt: skip
TUNING_RATES = {"adamw": 1e-3, "muon": 3e-3}  # peak rate of each optimizer
LORA = {"optimizer": "adamw", "learning_rate": 3e-3}  # the same for `--lora`

# The fastest-learning settings that we measured. docs/recipes.md has the sweeps, and the settings that did not help.
_MUON = {"kind": "byte", "optimizer": "muon", "schedule": "trapezoid", "min_lr": 0.0}
_GPT2 = {**_MUON, "vocab_limit": 50_257, "max_seq_len": 1024, "learning_rate": 3e-3}
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        **_MUON,
        "vocab_limit": 2000,
        "max_seq_len": 64,
        "embed_dim": 128,
        "num_heads": 4,
        "ff_hidden_dim": 512,
        "num_layers": 2,
        "batch_size": 16,
        "total_steps": 400,
        "learning_rate": 1.6e-2,
        "decay_fraction": 0.5,
        "eval_every": 100,
        "sample_every": 100,
    },
    "small": {
        **_MUON,
        "vocab_limit": 2000,
        "max_seq_len": 128,
        "embed_dim": 128,
        "num_heads": 4,
        "ff_hidden_dim": 512,
        "num_layers": 4,
        "batch_size": 16,
        "total_steps": 2000,
        "learning_rate": 6e-3,
        "sample_every": 500,
    },
    "baby": {
        **_MUON,
        "vocab_limit": 257,
        "max_seq_len": 256,
        "embed_dim": 384,
        "num_heads": 6,
        "ff_hidden_dim": 1536,
        "num_layers": 6,
        "dropout": 0.2,
        "batch_size": 64,
        "total_steps": 1500,
        "learning_rate": 4e-3,
        "sample_every": 500,
    },
    "medium": {**_MUON, "vocab_limit": 16_384, "total_steps": 5000, "learning_rate": 4e-3},
    "gpt2-124M": {
        **_GPT2,
        "embed_dim": 768,
        "num_heads": 12,
        "ff_hidden_dim": 3072,
        "num_layers": 12,
        "batch_size": 32,
    },
    "gpt2-350M": {
        **_GPT2,
        "embed_dim": 1024,
        "num_heads": 16,
        "ff_hidden_dim": 4096,
        "num_layers": 24,
        "batch_size": 16,
    },
}
# Settings of a preset that suit its optimizer alone: another --optimizer drops them.
RATES = ("learning_rate", "min_lr", "schedule", "decay_fraction")
