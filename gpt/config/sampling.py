"""The settings of generation."""

import math
from dataclasses import dataclass

from gpt.config.fields import check

NUM_TOKENS = 100  # tokens that generation adds
NO_EOS = -1  # the --eos-id that no token has: generation never stops early


@dataclass(frozen=True)
class SamplingConfig:
    """How generation chooses the next token. Raises UserError for a value out of range.

    Four steps, in this order: `repetition_penalty` (1 = off; None: see `penalty`) makes tokens of the context less
    likely (Keskar et al. 2019). `temperature` sharpens (below 1) or flattens the distribution; 0 takes the likeliest
    token. `top_k` (0 = off) keeps the k likeliest tokens. `top_p` (1 = off) keeps the fewest tokens that together reach
    that probability (Holtzman et al. 2020).

    For example, probabilities of 0.5, 0.3 and 0.2 with a `top_p` of 0.7 leave the first two, at 0.625 and 0.375.
    """

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.9
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        check(0 <= self.temperature < math.inf, "temperature", self.temperature, "a number of at least 0")
        check(self.top_k >= 0, "top_k", self.top_k, "at least 0")
        check(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        check(0 < self.penalty < math.inf, "repetition_penalty", self.penalty, "a number above 0")

    @property
    def penalty(self) -> float:
        """The repetition penalty: the given one, or else 1.1, or 1 if `temperature` is 0."""
        if self.repetition_penalty is None:
            return 1.1 if self.temperature else 1.0
        return self.repetition_penalty
