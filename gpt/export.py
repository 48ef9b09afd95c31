"""Export to a directory that Hugging Face's `from_pretrained` loads: the model as GPT2LMHeadModel, and its tokenizer.
Or to one that PEFT's loads: the adapters of a run alone.

The default settings differ between versions of transformers. So the files give every setting that changes a result: the
inputs that the tokenizer makes, the side and token of padding, the scale of attention, and the token that ends a text.
If the model was trained on conversations, they have its chat template, and an answer also ends at the next marker.
The inputs matter because PreTrainedTokenizerFast of transformers 4 makes `token_type_ids` by default, and GPT-2 would
then add the embedding of token 0 at every position.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt import chat_template, provenance
from gpt.checkpoint import Checkpoint, largest_tensor
from gpt.config import ModelConfig
from gpt.constants import NORM_EPS
from gpt.errors import UserError, cannot
from gpt.history import validation_losses
from gpt.lora import PREFIX
from gpt.parameters import OF_VOCAB, parameter_count
from gpt.system.files import atomic_directory, write_atomically
from gpt.system.limits import free_memory, require_memory
from gpt.system.tensors import write_tensors
from gpt.tokenizer import Tokenizer

CURVES = "curves.png"  # of the training, in an exported directory

_SPECIAL = ("bos_token", "eos_token", "pad_token")
_HF_ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu"}  # gelu_new is the tanh approximation


def export(checkpoint: Checkpoint, out: Path, draw: Callable[[Path], object] | None = None) -> list[Path]:
    """Write the model and the tokenizer into the directory `out`, which must be new or empty.

    Returns the paths of its files: model.safetensors, config.json, generation_config.json, tokenizer.json,
    tokenizer_config.json and README.md, the model's card. `draw` writes the picture of the training's curves that the
    card shows, to the path that it is given (None: the card shows none).

    Raises UserError, leaving `out` as it was, if it is neither new nor empty, if it cannot be written, if the run's
    tokenizer is missing or is not the model's, or if the memory does not suffice.
    """
    _check_new(out)
    tokenizer = _tokenizer(checkpoint)
    needed = largest_tensor(checkpoint.model_config)
    require_memory("exporting", needed, free_memory(), "close other programs, or export on another machine")
    weights = checkpoint.weights()
    with _written(out) as made:
        write_tensors(made / "model.safetensors", weights)
        end = _end_of_text(tokenizer)
        _write_json(made / "config.json", _model_config(checkpoint.model_config) | end)
        stops = sorted(chat_template.stop_ids(tokenizer)) if chat_template.is_used_by(tokenizer) else None
        _write_json(made / "generation_config.json", end | ({"eos_token_id": stops} if stops else {}))
        _write_tokenizer(made, checkpoint.model_config, tokenizer)
        if draw:
            draw(made / CURVES)
        write_atomically(made / "README.md", model_card(checkpoint, has_curves=draw is not None))
    return [out / name for name in sorted(os.listdir(out))]


def export_adapters(checkpoint: Checkpoint, out: Path) -> list[Path]:
    """Write the adapters of a run with `--lora` into the directory `out`, which must be new or empty, as PEFT does.

    Returns the paths of its files, adapter_model.safetensors and adapter_config.json. PEFT puts them beside a model of
    transformers: the one that the run began with, or an export of it. That model may lack the markers of conversations.
    If the run has them, its embeddings are among the adapters, as PEFT saves those of a vocabulary that has grown, and
    its tokenizer is beside them. The model must get as many embeddings first.

    Raises UserError, leaving `out` as it was, if it is neither new nor empty, if it cannot be written, if the run has
    no adapters, or as `export` does for its tokenizer.
    """
    _check_new(out)
    train = checkpoint.train_config
    if train.lora is None:
        raise UserError(f"run {checkpoint.run.name} has no adapters, as it was trained without --lora: use --format hf")
    tokenizer, tensors = _tokenizer(checkpoint), checkpoint.trained()
    with_markers = chat_template.is_used_by(tokenizer)
    if with_markers:
        base = checkpoint.base()
        tensors = {**tensors, **{f"{PREFIX}{name}": base[name] for name in OF_VOCAB if name in base}}
    with _written(out) as made:
        write_tensors(made / "adapter_model.safetensors", tensors)
        if with_markers:
            _write_tokenizer(made, checkpoint.model_config, tokenizer)
        _write_json(made / "adapter_config.json", _adapter_config(train.lora, train.base))
    return [out / name for name in sorted(os.listdir(out))]


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a run. Raises UserError if it is missing, or is not the model's."""
    tokenizer = Tokenizer.load(checkpoint.run.tokenizer_path)
    checkpoint.model_config.check_tokenizer(checkpoint.run.tokenizer_path, tokenizer.vocab_size)
    return tokenizer


def _write_tokenizer(directory: Path, model: ModelConfig, tokenizer: Tokenizer) -> None:
    tokenizer.save(directory / "tokenizer.json")
    _write_json(directory / "tokenizer_config.json", _tokenizer_config(model, tokenizer))


def _check_new(out: Path) -> None:
    """Raise UserError if a directory `out` cannot be made."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out} exists already: name a directory that does not, or an empty one")
    if out.exists() and out.samefile(os.curdir):  # it would be replaced, and the user's shell left in one that is gone
        raise UserError(f"--out {out} is the directory in which this command runs: name another one")


@contextmanager
def _written(out: Path) -> Iterator[Path]:
    """Inside the `with`, a directory to write to, which is `out` afterwards. Raises UserError if that fails."""
    with cannot(f"write {out}", even_if_missing=True), atomic_directory(out) as made:
        yield made


def _adapter_config(rank: int, base: str | None) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "target_modules": ["c_attn", "c_fc", "c_proj"],  # c_proj of attention and of the feed-forward layer
        "fan_in_fan_out": True,  # GPT-2's weights are [in, out]
        "r": rank,
        "lora_alpha": rank,  # the product of the adapters is not scaled
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "inference_mode": True,
    }


def _model_config(model: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": model.vocab_size,
        "n_positions": model.max_seq_len,
        "n_ctx": model.max_seq_len,  # llama.cpp's converter reads this name
        "n_embd": model.embed_dim,
        "n_layer": model.num_layers,
        "n_head": model.num_heads,
        "n_inner": model.ff_hidden_dim,
        "activation_function": _HF_ACTIVATIONS[model.activation],
        "embd_pdrop": model.dropout,
        "attn_pdrop": model.dropout,
        "resid_pdrop": model.dropout,
        "layer_norm_epsilon": NORM_EPS,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "tie_word_embeddings": model.tie_embeddings,
        "dtype": "float32",
        "torch_dtype": "float32",  # transformers before 4.56 read this name
    }


def _end_of_text(tokenizer: Tokenizer) -> dict[str, int | None]:
    """The token that ends a text also begins and pads it. Null if there is none, because GPT-2's is the default."""
    return dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.end_of_text)


def _tokenizer_config(model: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    end = tokenizer.end_of_text
    special = dict.fromkeys(_SPECIAL, None if end is None else tokenizer.piece(end))
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": model.max_seq_len,
        **special,
        "padding_side": "right",  # as GPT-2 counts positions; to generate a batch, pad on the left
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        **({"chat_template": chat_template.JINJA} if chat_template.is_used_by(tokenizer) else {}),
    }


def model_card(checkpoint: Checkpoint, has_curves: bool = False) -> str:
    """A README.md for the model: its shape, its training, its losses and how to use it, from the files of its run.

    If it `has_curves`, it shows the picture of that name beside it.
    """
    run, model, train, step = checkpoint.run, checkpoint.model_config, checkpoint.train_config, checkpoint.step
    rows = {
        "Parameters": f"{parameter_count(model):,}",
        "Layers x width": f"{model.num_layers} x {model.embed_dim}, {model.num_heads} heads",
        "Context": f"{model.max_seq_len:,} tokens",
        "Vocabulary": f"{model.vocab_size:,} tokens",
    }
    if not checkpoint.imported:
        rows |= _training(checkpoint)
    origin = "imported" if checkpoint.imported else f"trained for {step:,} steps"
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    optimizer = "" if checkpoint.imported else f" with {train.optimizer}"
    picture = f"\n![Curves of the training]({CURVES})\n" if has_curves else ""
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [gpt2, hipgpt]
---

# {run.name}

A GPT-2 that was {origin}{optimizer} by hipgpt.

| | |
|---|---|
{table}
{picture}
```python
from transformers import pipeline

write = pipeline("text-generation", model="{run.name}")  # the path of this directory
print(write("Once upon a time", max_new_tokens=50)[0]["generated_text"])
```
"""


def _training(checkpoint: Checkpoint) -> dict[str, str]:
    """The rows of a model card about a training: its text, its steps and its losses, as far as the run has them."""
    train, step, info = checkpoint.train_config, checkpoint.step, provenance.read(checkpoint.run)
    lines = [line for line in checkpoint.run.metrics() if line["step"] <= step]
    tokens = train.batch_size * train.accumulate * checkpoint.model_config.max_seq_len
    rows = {}
    if info is not None:
        text = ", ".join(Path(path).name for path in provenance.remembered(info)).replace("|", "\\|")
        rows["Text"] = f"{text}, {info['count']:,} tokens"
    rows["Steps"] = f"{step:,} of {tokens:,} tokens, {train.optimizer}, peak rate {train.peak_lr:g}"
    if logged := [line for line in lines if line.get("loss") is not None]:
        rows["Training loss"] = f"{logged[-1]['loss']:.4f} at step {logged[-1]['step']:,}"
    if evaluations := validation_losses(lines, train.val_fraction):
        rows["Validation loss"] = f"{evaluations[-1][1]:.4f} at step {evaluations[-1][0]:,}, in nats per token"
    return rows


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=2) + "\n")
