"""GPT-2 in PyTorch, trained as fast as PyTorch's users train it, and Hugging Face's to generate with: the peers.

    python benchmarks/pytorch_gpt2.py train --preset gpt2-124M --mode graphs
    python benchmarks/pytorch_gpt2.py train --preset gpt2-124M --dim 1280 --heads 20 --ff 5120 --layers 36 --batch 4
    python benchmarks/pytorch_gpt2.py generate --preset gpt2-124M

Each prints one JSON object with keys as of `hipgpt bench --json`. A training step is the usual one: activations by
autocast and the residual stream in float32, PyTorch's own choice of attention kernel, clipping by the global norm,
fused AdamW. The tokens are on the device before the clock starts. Both need a GPU, `generate` needs transformers too.
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import click
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from gpt.bench import GENERATED
from gpt.commands.command_line import Command, Option
from gpt.commands.options import BATCH, MODEL, PRESET
from gpt.config import PRECISIONS, ModelConfig, SamplingConfig, TokenizerConfig, TrainConfig
from gpt.initialization import STD
from gpt.optim import BETAS, EPS
from gpt.parameters import padded_vocab
from gpt.plan import settle
from gpt.timing import after, time_groups

MODES = {"eager": None, "compile": "default", "graphs": "reduce-overhead"}  # torch.compile's names for them
WARM_UP = 8  # steps after the first, in which graphs are recorded
BATCHES = 4  # batches of random tokens, used over and over
VOCAB_MULTIPLE = 128  # vocabularies are padded to a multiple of this, as hipgpt's are


class Block(nn.Module):
    """A block like hipgpt's: pre-LN, biases everywhere, GELU by the tanh approximation."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, f = config.embed_dim, config.ff_hidden_dim
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.rate, self.dropout = config.dropout, nn.Dropout(config.dropout)
        self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(d, 3 * d), "c_proj": nn.Linear(d, d)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(d, f), "c_proj": nn.Linear(f, d)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.attn["c_attn"](self.ln_1(x)).unflatten(-1, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [batch, heads, seq, head_dim]
        rate = self.rate if self.training else 0.0
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=rate)
        x = x + self.dropout(self.attn["c_proj"](attended.transpose(1, 2).flatten(2)))
        hidden = functional.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh")
        return x + self.dropout(self.mlp["c_proj"](hidden))


class GPT2(nn.Module):
    """A GPT-2 with a tied head, its parameters named as GPT-2's; only Linear keeps its weights as [out, in]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.embed_dim
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, d),
                "wpe": nn.Embedding(config.max_seq_len, d),
                "h": nn.ModuleList(Block(config) for _ in range(config.num_layers)),
                "ln_f": nn.LayerNorm(d),
            }
        )
        self.dropout = nn.Dropout(config.dropout)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=STD)

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy of int64 [batch, seq] ids and labels."""
        wte, wpe = self.transformer["wte"], self.transformer["wpe"]
        x = self.dropout(wte(ids) + wpe.weight[: ids.shape[1]])
        for block in self.transformer["h"]:
            x = block(x)
        logits = functional.linear(self.transformer["ln_f"](x), wte.weight)
        return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())

    def load(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Take over hipgpt's weights, by name."""
        self.load_state_dict({name: torch.tensor(linear_layout(name, array)) for name, array in tensors.items()})


def linear_layout(name: str, array: np.ndarray) -> np.ndarray:
    """A tensor of hipgpt, or its gradient, in the layout of GPT2: the weight of a Linear is transposed."""
    return array.T if array.ndim == 2 and ".c_" in name else array


class TrainStep:
    """A GPT2, its optimizer, and a step. `mode` is one of MODES; `precision` is "fp32", "tf32" or "bf16"."""

    def __init__(
        self, model_config: ModelConfig, train_config: TrainConfig, device: str, precision: str, mode: str
    ) -> None:
        torch.manual_seed(train_config.seed)
        torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
        self.module = GPT2(model_config).to(device)
        parameters = list(self.module.parameters())
        self.optimizer = _adamw(parameters, train_config)
        self._loss = torch.compile(self.module, mode=MODES[mode]) if MODES[mode] else self.module
        self._autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")
        self._parameters, self._clip, self._mode = parameters, train_config.grad_clip, mode

    def run(self, ids: torch.Tensor, labels: torch.Tensor, lr: float) -> torch.Tensor:
        """Take a step on int64 [batch, seq] ids and labels. Returns their loss before it. Waits for nothing."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self._mode == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        with self._autocast:
            loss = self._loss(ids, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def restart(self, tensors: Mapping[str, np.ndarray], config: TrainConfig) -> None:
        """Begin anew from hipgpt's weights, given by name, without compiling again."""
        self.module.load(tensors)
        self.optimizer = _adamw(self._parameters, config)

    def loss(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy of int64 [rows, seq] ids and labels, without a gradient and without dropout."""
        self.module.eval()
        with torch.no_grad(), self._autocast:
            loss: torch.Tensor = self.module(ids, labels)
        self.module.train()
        return loss


def _adamw(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in parameters if p.dim() == 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.peak_lr, betas=BETAS["adamw"], eps=EPS, fused=True)


def shape(preset: str | None, settings: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig]:
    """The model and training of `hipgpt bench` with that preset (None: the default) and those settings."""
    model, config = settle({"optimizer": "adamw", **settings}, preset, start=None, resume=False)
    return replace(model, vocab_size=TokenizerConfig.of(preset).vocab_limit), config


@click.group()
def main() -> None:
    """Time PyTorch and Hugging Face on the first GPU, at the same work as hipgpt."""


# The options of `hipgpt bench` that both take.
SHAPE = [
    option for option in (*MODEL, *BATCH)
    if option.name in ("embed_dim", "num_heads", "ff_hidden_dim", "num_layers", "max_seq_len", "dropout", "batch_size")
]  # fmt: skip
MODE = Option("--mode", type=click.Choice(list(MODES)), default="eager", help="Way to run PyTorch.")
PRECISION = Option("--precision", type=click.Choice(PRECISIONS[1:]), default="bf16", help="Number format of products.")


@main.command(
    cls=Command, sections={"Options": (MODE, PRECISION, PRESET, *SHAPE)},
    epilog="python benchmarks/pytorch_gpt2.py train --preset gpt2-124M --mode graphs",
)  # fmt: skip
def train(mode: str, precision: str, preset: str | None, settings: dict[str, Any]) -> None:
    """Train on random tokens. The end of the first step is told on standard error, for scripts that time it."""
    model, config = shape(preset, settings)
    ids, labels = torch.randint(
        model.vocab_size, (2, BATCHES, config.batch_size, model.max_seq_len), device="cuda"
    ).unbind()  # fmt: skip
    padded = replace(model, vocab_size=padded_vocab(model, VOCAB_MULTIPLE))
    train_step, numbers = TrainStep(padded, config, "cuda", precision, mode), itertools.count()

    def step() -> None:
        batch = next(numbers) % BATCHES
        train_step.run(ids[batch], labels[batch], config.peak_lr)

    step()
    torch.cuda.synchronize()
    click.echo("[Step 1]", err=True)
    for _ in range(WARM_UP):
        step()
    ms = time_groups(step, after(torch.cuda.synchronize)).median * 1e3
    click.echo(json.dumps({"ms_per_step": ms, "held_bytes": torch.cuda.max_memory_allocated()}))


@main.command(
    cls=Command, sections={"Options": (PRESET,)}, epilog="python benchmarks/pytorch_gpt2.py generate --preset gpt2-124M"
)
def generate(preset: str | None) -> None:
    """Draw tokens one by one from GPT2LMHeadModel in bf16, with its cache and hipgpt's sampling."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model, sampling = shape(preset, {})[0], SamplingConfig()
    config = GPT2Config(
        vocab_size=model.vocab_size, n_positions=model.max_seq_len, n_embd=model.embed_dim, n_layer=model.num_layers,
        n_head=model.num_heads, n_inner=model.ff_hidden_dim, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    peer = GPT2LMHeadModel(config).to("cuda", torch.bfloat16).eval()
    prompt = torch.zeros((1, 1), dtype=torch.long, device="cuda")

    def draw(count: int) -> None:
        peer.generate(
            prompt, attention_mask=torch.ones_like(prompt), min_new_tokens=count, max_new_tokens=count, do_sample=True,
            temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p,
            repetition_penalty=sampling.penalty,
        )  # fmt: skip

    draw(WARM_UP)
    seconds = time_groups(lambda: draw(GENERATED), after(torch.cuda.synchronize)).median
    click.echo(json.dumps({"generated_tokens_per_second": GENERATED / seconds}))


if __name__ == "__main__":
    main()
