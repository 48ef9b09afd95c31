"""Train the same GPT-2 twice, with hipgpt and with PyTorch: same first weights, same batches, same schedule.

    python benchmarks/loss_against_pytorch.py data/shakespeare.txt [STEPS]

Prints both training losses every 50 steps and both validation losses at the end. The peer is GPT2LMHeadModel
(transformers) under torch.optim.AdamW; only the initial weights, the batches and the learning rates are hipgpt's.
Needs `pip install "hipgpt[peers]"`; about four minutes on two cores.
"""

import sys
import tempfile
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gpt.config import ModelConfig, TrainConfig
from gpt.console import Console
from gpt.data import Batches
from gpt.model import GPT
from gpt.ops import select
from gpt.optim import BETAS, EPS, learning_rate
from gpt.prepare import prepare
from gpt.run import Run
from gpt.trainer import Trainer

SHAPE = {"embed_dim": 128, "num_heads": 4, "ff_hidden_dim": 512, "num_layers": 4, "max_seq_len": 128}


def main(text: str, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run, console = Run("peer", Path(folder)), Console()
        with run.lock():
            corpus = prepare(run, data_path=text, vocab_limit=2000, kind="word", report=console.line)
            model = ModelConfig(vocab_size=corpus.tokenizer.vocab_size, **SHAPE)
            config = TrainConfig(batch_size=16, total_steps=steps, learning_rate=1e-3, eval_every=steps)
            batches = Batches(
                corpus.tokens, config.batch_size, model.max_seq_len,
                sampling=config.sampling, seed=config.seed, val_fraction=config.val_fraction,
            )  # fmt: skip
            Trainer(run, model, config, batches, select("cpu"), console).train()
        train_peer(peer_of(model, config), config, batches)


def peer_of(model: ModelConfig, config: TrainConfig) -> GPT2LMHeadModel:
    """The peer, with the weights hipgpt starts from."""
    ours = GPT(model, select("cpu"))
    ours.initialize(config.seed)
    peer = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=model.vocab_size, n_positions=model.max_seq_len, n_embd=model.embed_dim,
            n_layer=model.num_layers, n_head=model.num_heads, n_inner=model.ff_hidden_dim,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip
    state = {name: torch.tensor(view) for name, view in ours.weights.named.items()}
    peer.load_state_dict({**state, "lm_head.weight": state["transformer.wte.weight"]})
    return peer


def train_peer(peer: GPT2LMHeadModel, config: TrainConfig, batches: Batches) -> None:
    parameters = list(peer.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() == 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
        ],
        betas=BETAS, eps=EPS,
    )  # fmt: skip
    for step in range(1, config.total_steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        loss = summed_loss(peer, *batches.train(step - 1)) / (config.batch_size * batches.seq)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip)
        optimizer.step()
        if step % config.log_every == 0:
            print(f"[Step {step}] PyTorch Loss: {loss.item():.4f}", flush=True)
    with torch.no_grad():
        validation = [(summed_loss(peer, ids, labels).item(), labels.size) for ids, labels in batches.validation()]
    total, tokens = map(sum, zip(*validation, strict=True))
    print(f"[Step {config.total_steps}] PyTorch Validation Loss: {total / tokens:.4f}")


def summed_loss(peer: GPT2LMHeadModel, ids, labels) -> torch.Tensor:
    logits = peer(torch.from_numpy(ids).long()).logits
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(labels).long().flatten(), reduction="sum"
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 300)
