"""The settings of a model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt.config.fields import check, check_choice, check_types, pick
from gpt.errors import UserError

LAYER_LIMIT = 10_000  # layers: refuse a mistyped number before a list of its tensors fills the memory


@dataclass(frozen=True)
class ModelConfig:
    """A GPT-2: pre-LN blocks, learned positions, biases everywhere (Radford et al. 2019).

    Raises UserError for a value that cannot make a model.
    """

    vocab_size: int
    max_seq_len: int = 256
    embed_dim: int = 256
    num_heads: int = 8
    ff_hidden_dim: int = 1024
    num_layers: int = 8
    activation: str = "gelu"
    tie_embeddings: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        for key in ("vocab_size", "max_seq_len", "embed_dim", "num_heads", "ff_hidden_dim", "num_layers"):
            check(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        check(self.num_layers <= LAYER_LIMIT, "num_layers", self.num_layers, f"at most {LAYER_LIMIT}")
        if self.embed_dim % self.num_heads:
            raise UserError(f"--dim {self.embed_dim} is not a multiple of --heads {self.num_heads}: change one of them")
        check_choice(self, "activation")
        check(0 <= self.dropout < 1, "dropout", self.dropout, "at least 0 and below 1")

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    def check_tokenizer(self, tokenizer: str | Path, vocab_size: int) -> None:
        """Raise UserError if a tokenizer of `vocab_size` tokens, named `tokenizer`, cannot be this model's."""
        if vocab_size != self.vocab_size:
            raise UserError(
                f"{tokenizer} has {vocab_size} tokens, but the model {self.vocab_size}: "
                "put back the tokenizer that the model was trained with"
            )

    @classmethod
    def from_json(cls, section: Mapping[str, Any]) -> "ModelConfig":
        return cls(**pick(cls, section))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
