"""Export to a GGUF file, which llama.cpp and the programs built on it run: the model and its tokenizer in one file.

llama.cpp has GPT-2 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md describes the format), but fewer kinds
than hipgpt: a feed-forward layer of 4 times the width, GELU, and byte-level vocabularies that are split as GPT-2's. It
runs other models too, but computes something else, so they are refused here. Its matrices are [out, in], the transpose
of ours. Norms, biases and positions stay float32 in every type of file.
"""

from pathlib import Path
from typing import Any

import numpy as np

from gpt import chat_template
from gpt.checkpoint import Checkpoint, largest_tensor
from gpt.config import ModelConfig
from gpt.constants import NORM_EPS
from gpt.errors import UserError, cannot
from gpt.parameters import POSITIONS, parameter_shapes
from gpt.system.files import atomic_path, discard_leftovers, make_directory
from gpt.system.limits import free_memory, require_memory
from gpt.system.reading import LARGE, read_json
from gpt.tokenizer import Tokenizer

TYPES = ("f32", "f16", "q8_0")
_BLOCK = 32  # numbers that share a scale in q8_0
_BLOCKS = {  # our modules → llama.cpp's
    "ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip
_OTHERS = {
    "transformer.wte.weight": "token_embd.weight", POSITIONS: "position_embd.weight",
    "transformer.ln_f.weight": "output_norm.weight", "transformer.ln_f.bias": "output_norm.bias",
    "lm_head.weight": "output.weight",
}  # fmt: skip


def export_gguf(checkpoint: Checkpoint, out: Path, type_name: str = "f32") -> Path:
    """Write the model and the tokenizer to the file `out`, which must be new, and return its path.

    `type_name` is one of TYPES, the type of the matrices: float32, float16, or 8-bit integers in blocks of 32 with a
    float16 scale each.

    Raises UserError, leaving nothing, if llama.cpp has no such model, if the type cannot hold it, if the package gguf
    is not installed, if `out` exists or cannot be written, or if the memory does not suffice.
    """
    try:
        import gguf
    except ImportError:
        raise UserError('--format gguf needs the package gguf: pip install "hipgpt[gguf]"') from None
    if out.exists():
        raise UserError(f"--out {out} exists already: name a file that does not")
    run, config = checkpoint.run, checkpoint.model_config
    tokenizer = Tokenizer.load(run.tokenizer_path)
    config.check_tokenizer(run.tokenizer_path, tokenizer.vocab_size)
    document = read_json(run.tokenizer_path, {}, "a tokenizer", "put the run's tokenizer back", LARGE)
    _check_model(config, type_name)
    _check_tokenizer(run.tokenizer_path, tokenizer, document)
    advice = "close other programs, or export on another machine"
    require_memory("exporting", 3 * largest_tensor(config), free_memory(), advice)
    with cannot(f"write {out}", even_if_missing=True):
        make_directory(out.absolute().parent)
        discard_leftovers(out)
        with atomic_path(out) as temporary:
            writer = gguf.GGUFWriter(temporary, "gpt2")
            _describe(writer, run.name, config, type_name)
            _add_vocabulary(writer, tokenizer, document)
            _write_tensors(gguf, writer, temporary, checkpoint, type_name)
            writer.close()
    return out


def tensor_name(ours: str) -> str:
    """The name of a parameter in llama.cpp.

    Example:

    >>> tensor_name("transformer.h.3.attn.c_proj.weight")
    'blk.3.attn_output.weight'
    """
    if ours in _OTHERS:
        return _OTHERS[ours]
    _, _, layer, *module, kind = ours.split(".")
    return f"blk.{layer}.{_BLOCKS['.'.join(module)]}.{kind}"


def _check_model(config: ModelConfig, type_name: str) -> None:
    """Raise UserError if llama.cpp's GPT-2 is another model than this one, or `type_name` cannot hold it."""
    if config.ff_hidden_dim != 4 * config.embed_dim:
        raise UserError(
            f"the model's feed-forward width is {config.ff_hidden_dim}, but llama.cpp's GPT-2 has 4 times its width of "
            f"{config.embed_dim}: use --format hf"
        )
    if config.activation != "gelu":
        raise UserError(
            f"the model's activation is {config.activation}, but llama.cpp's GPT-2 has gelu: use --format hf"
        )
    if type_name == "q8_0" and config.embed_dim % _BLOCK:
        raise UserError(
            f"--type q8_0 needs a width that is a multiple of {_BLOCK}, but the model's is {config.embed_dim}: "
            "use --type f16"
        )


def _check_tokenizer(path: Path, tokenizer: Tokenizer, document: dict[str, Any]) -> None:
    """Raise UserError if llama.cpp would split a text into other tokens."""
    if tokenizer.kind != "byte":
        raise UserError(
            f"{path} is a {tokenizer.kind} tokenizer, and llama.cpp has none that splits at white space alone: use "
            "--format hf, or train with --tokenizer byte"
        )
    splits = document.get("pre_tokenizer") or {}
    gpt2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    if document.get("normalizer") or not gpt2.items() <= splits.items():
        raise UserError(
            f"{path} does not split text as GPT-2 does, so llama.cpp would make other tokens: use --format hf"
        )


def _describe(writer: Any, name: str, config: ModelConfig, type_name: str) -> None:
    writer.add_name(name)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.embed_dim)
    writer.add_feed_forward_length(config.ff_hidden_dim)
    writer.add_head_count(config.num_heads)
    writer.add_layer_norm_eps(NORM_EPS)
    writer.add_file_type({"f32": 0, "f16": 1, "q8_0": 7}[type_name])  # LLAMA_FTYPE_…


def _add_vocabulary(writer: Any, tokenizer: Tokenizer, document: dict[str, Any]) -> None:
    special = {entry["id"] for entry in document.get("added_tokens", ()) if entry.get("special")}
    pieces = [tokenizer.piece(id) for id in range(tokenizer.vocab_size)]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in document["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(pieces)
    writer.add_token_types([3 if id in special else 1 for id in range(len(pieces))])  # control, normal
    writer.add_token_merges(merges)
    if (end := tokenizer.end_of_text) is not None:
        writer.add_bos_token_id(end)
        writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)
    if chat_template.is_used_by(tokenizer):
        writer.add_chat_template(chat_template.JINJA)
        (user,) = tokenizer.encode(chat_template.MARKERS[chat_template.USER])
        writer.add_eot_token_id(user)  # an answer ends where the user's next message begins


def _write_tensors(gguf: Any, writer: Any, path: Path, checkpoint: Checkpoint, type_name: str) -> None:
    """Write the header, which has the place of each tensor, and then the tensors, one at a time."""
    kinds = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16,
             "q8_0": gguf.GGMLQuantizationType.Q8_0}  # fmt: skip
    weights, shapes = checkpoint.weights(), parameter_shapes(checkpoint.model_config)

    def kind_of(name: str) -> Any:
        return kinds["f32" if len(shapes[name]) == 1 or name == POSITIONS else type_name]

    for name, shape in shapes.items():
        kind, turned = kind_of(name), shape[::-1] if _is_turned(name) else shape
        block, size = gguf.GGML_QUANT_SIZES[kind]
        count = int(np.prod(turned)) // block * size
        writer.add_tensor_info(tensor_name(name), turned, np.dtype(np.float32), count, raw_dtype=kind)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in shapes:
        tensor = np.ascontiguousarray(weights[name].T) if _is_turned(name) else weights[name]
        with np.errstate(over="ignore"):
            written = gguf.quants.quantize(tensor, kind_of(name))
        if written.dtype == np.float16 and not np.isfinite(written).all():
            raise UserError(f"--type f16 cannot hold {name}, which has numbers above 65504: use --type f32")
        writer.write_tensor_data(written)


def _is_turned(name: str) -> bool:
    """Whether llama.cpp has the transpose of a parameter: of every matrix that is multiplied from the right."""
    return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
