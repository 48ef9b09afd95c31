"""Reads a GPT-2 from a Hugging Face directory: config.json, safetensors files and the tokenizer.

Only a model that computes exactly what gpt/model.py computes is read. Anything else is refused, by the name and value
of the setting that differs. The tensors have the names and shapes of ours, so reading one is finding its file. Two
things vary: some writers leave out the prefix `transformer.`, and older ones store the causal mask, which is not
learned. Tensors are read one by one, so a model of any size takes the memory of its largest tensor.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt.chat_template import JINJA
from gpt.config import ModelConfig
from gpt.constants import NORM_EPS
from gpt.errors import UserError, shown
from gpt.parameters import parameter_shapes
from gpt.system.reading import COUNT, LARGE, NUMBER, TEXT, TRUTH, Schema, check, optional, or_null, read, read_json
from gpt.system.tensors import FLOATS, open_file, words
from gpt.tokenizer import Tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FILES = ("config.json", WEIGHTS, INDEX)
ADAPTERS = "adapter_config.json"  # a directory of PEFT's has this file, adapters, and no model
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu", "relu": "relu"}  # theirs → ours

_ADVICE = "download it again, or have it written again"
# The values that transformers' GPT2Config has for keys that config.json leaves out.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None,
    "activation_function": "gelu_new", "tie_word_embeddings": True,
    "embd_pdrop": 0.1, "attn_pdrop": 0.1, "resid_pdrop": 0.1,
}  # fmt: skip
_ALIASES = {  # GPT2Config takes these names too
    "hidden_size": "n_embd", "max_position_embeddings": "n_positions", "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}  # fmt: skip
# Settings that change what a model computes, each with the values that gpt/model.py has; the first is the default.
# (reorder_and_upcast_attn only changes the order of two roundings.)
_ONLY: dict[str, tuple[object, ...]] = {
    "architectures": (None, ["GPT2LMHeadModel"]),
    "layer_norm_epsilon": (NORM_EPS,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
}
_KINDS: Schema = {
    **dict.fromkeys(("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"), COUNT),
    "n_inner": or_null(COUNT),
    "activation_function": TEXT,
    "tie_word_embeddings": TRUTH,
    **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), NUMBER),
}
_MASK = re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)")
_MULTIPLE, _MOST_UNUSED = 8, 1024  # a padded vocabulary is a multiple of the one, with less than the other unused
_UNUSED = "<|unused{}|>"  # the special token of an id without a token


def read_directory(path: Path) -> tuple[ModelConfig, Mapping[str, np.ndarray], Tokenizer]:
    """The model in a directory, or in the directory of a file: its shape, its weights and its tokenizer.

    The weights are float32, with the names, order and shapes of `parameter_shapes`, each read when it is asked for.
    Files of F32, F16 and BF16 tensors are read, in one piece or in shards.

    Raises UserError, which names the file, if one is missing or damaged, if they do not fit together, or if hipgpt has
    no such model. Asking for a tensor raises UserError if a value in it is not finite.
    """
    directory = path if path.is_dir() or not path.exists() else path.parent
    if not directory.is_dir():
        raise UserError(
            f"{path} does not exist: name a directory with config.json and {WEIGHTS}, as `hipgpt fetch gpt2` brings"
        )
    if path.name in PICKLES:
        raise _refused_pickle(path)
    if path.is_file() and path.name not in FILES:  # what is beside it may be another model, or an older one
        raise UserError(f"{path} is not read: name {WEIGHTS}, or the directory with {WEIGHTS} and config.json")
    if not (directory / "config.json").exists() and (cached := sorted(directory.glob("snapshots/*/config.json"))):
        raise UserError(f"{directory} is where Hugging Face's cache has a model: name {cached[-1].parent}")
    if (directory / ADAPTERS).exists() and not (directory / "config.json").exists():
        merge = "AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload().save_pretrained(OTHER)"
        raise UserError(f"{directory} has the adapters of a model alone: merge them with it, with PEFT (`{merge}`)")
    config = read_config(directory / "config.json")
    weights = Weights(directory, config)
    tokenizer = _filled(_tokenizer(directory), config.vocab_size)
    config.check_tokenizer(f"the tokenizer in {directory}", tokenizer.vocab_size)
    return config, weights, tokenizer


def foreign_chat_template(path: Path) -> Path | None:
    """The file in which a directory has a chat template other than ours (`gpt.chat_template.JINJA`), if it has one."""
    directory = path if path.is_dir() else path.parent
    if (file := directory / "chat_template.jinja").exists():
        found: object = read(file, LARGE).decode("utf-8", "replace")
    elif (file := directory / "tokenizer_config.json").exists():
        found = read_json(file, {}, "the config of a tokenizer", _ADVICE, LARGE).get("chat_template")
    else:
        return None
    return file if found not in (None, JINJA) else None


def _tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a directory: its tokenizer.json, or else the older vocab.json and merges.txt."""
    path = directory / "tokenizer.json"
    if path.exists():
        return Tokenizer.load(path)
    if not (directory / "vocab.json").exists():
        raise UserError(f"{directory} has neither tokenizer.json nor vocab.json: put the model's tokenizer there")
    return Tokenizer.load(directory)


def _filled(tokenizer: Tokenizer, size: int) -> Tokenizer:
    """The tokenizer with a special token for each embedding of a model that has no token, if they are padding.

    A model may have more embeddings than tokens, up to a size that suits a GPU: a multiple of 64, or of 8 for tensor
    cores. nanoGPT's GPT-2 has 50,304, so the ids from 50,257 on become <|unused50257|> and so on.
    """
    if size % _MULTIPLE or not 0 < size - tokenizer.vocab_size < _MOST_UNUSED:
        return tokenizer
    return tokenizer.with_special_tokens([_UNUSED.format(id) for id in range(tokenizer.vocab_size, size)])


def unused_tokens(tokenizer: Tokenizer) -> list[str]:
    """The special tokens of a tokenizer that `read_directory` gave to embeddings without a token."""
    beginning = _UNUSED.partition("{")[0]
    return [text for text in tokenizer.special_tokens if text.startswith(beginning)]


def read_config(path: Path) -> ModelConfig:
    """The shape of the model that a config.json describes.

    Raises UserError if it is missing or damaged, or names the first setting that gpt/model.py does not have.
    """
    schema = {"model_type": TEXT, **dict.fromkeys(_ALIASES, optional(COUNT))}
    try:
        found = read_json(path, schema, "the config of a model", _ADVICE)
        found = {**_DEFAULTS, **{_ALIASES.get(key, key): value for key, value in found.items()}}
        check(found, _KINDS)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: name a directory with config.json and {WEIGHTS}") from None
    except ValueError as error:
        raise UserError(f"{path} is not the config of a model: {error}: {_ADVICE}") from None
    allowed = {"model_type": ("gpt2",), "activation_function": tuple(ACTIVATIONS), **_ONLY}
    for key, values in allowed.items():
        if (value := found.get(key, values[0])) not in values:
            wanted = " or ".join(shown(each) for each in values if each is not None) or "none"
            raise UserError(f"{path} has {key} {shown(value)}, but the models that hipgpt can read have {wanted}")
    dropouts = {key: found[key] for key in ("embd_pdrop", "attn_pdrop", "resid_pdrop")}
    if len(set(dropouts.values())) > 1:
        given = ", ".join(f"{key} {value:g}" for key, value in dropouts.items())
        raise UserError(f"{path} has {given}, but hipgpt has one dropout: make them equal (they matter in training)")
    try:
        return ModelConfig(
            vocab_size=found["vocab_size"], max_seq_len=found["n_positions"], embed_dim=found["n_embd"],
            num_heads=found["n_head"], num_layers=found["n_layer"],
            ff_hidden_dim=4 * found["n_embd"] if found["n_inner"] is None else found["n_inner"],
            activation=ACTIVATIONS[found["activation_function"]], tie_embeddings=found["tie_word_embeddings"],
            dropout=float(found["resid_pdrop"]),
        )  # fmt: skip
    except UserError as error:
        raise UserError(f"{path} describes a model that hipgpt does not have: {error}") from None


class Weights(Mapping[str, np.ndarray]):
    """The weights of a model in a directory's safetensors files; `read_directory` describes them."""

    def __init__(self, directory: Path, config: ModelConfig) -> None:
        shapes = parameter_shapes(config)
        found: dict[str, tuple[str, _Shard]] = {}
        for theirs, shard in _tensors(directory).items():
            other, _ = found.setdefault(_our_name(theirs), (theirs, shard))
            if other != theirs:
                raise UserError(f"{directory} has {other} and {theirs}, which are one tensor: leave one of them out")
        self._places: dict[str, tuple[str, _Shard]] = {}
        for name, shape in shapes.items():
            if name not in found:
                raise UserError(f"{directory} has no tensor {name}, which its config.json asks for: {_ADVICE}")
            theirs, shard = found.pop(name)
            dtype, its_shape = shard.file.layout[theirs]
            if dtype not in FLOATS:
                convert = "AutoModelForCausalLM.from_pretrained(DIR).float().save_pretrained(OTHER)"
                raise UserError(f"{shard.path} has {dtype} in {theirs}, but hipgpt reads {', '.join(FLOATS)}: convert "
                                f"the model with transformers (`{convert}`)")  # fmt: skip
            if its_shape != shape:
                wanted = f"{' or '.join(FLOATS)} {list(shape)}"
                raise UserError(f"{shard.path} does not fit config.json: {theirs} is {words(dtype, its_shape)}, "
                                f"but must be {wanted}: {_ADVICE}")  # fmt: skip
            self._places[name] = theirs, shard
        if config.tie_embeddings and "lm_head.weight" in found:
            self._check_copy(*found.pop("lm_head.weight"))
        if found:
            theirs, shard = next(iter(found.values()))
            raise UserError(f"{shard.path} has the tensor {shown(theirs, quoted=False)}, which is not part of a GPT-2")

    def _check_copy(self, name: str, shard: "_Shard") -> None:
        """Raise UserError unless the head, which tied embeddings do not need, is a copy of the token embedding."""
        theirs, other = self._places["transformer.wte.weight"]
        kind = shard.file.layout[name]
        if kind != other.file.layout[theirs] or not np.array_equal(
            shard.file.float32(name), other.file.float32(theirs)
        ):
            raise UserError(
                f"{shard.path} has a {name} of its own, but config.json says tie_word_embeddings: set that to false"
            )

    def __getitem__(self, name: str) -> np.ndarray:
        theirs, shard = self._places[name]
        tensor = shard.file.float32(theirs)
        # The sum of finite numbers may be infinite, but only then do all of them have to be looked at.
        with np.errstate(over="ignore", invalid="ignore"):
            suspicious = not np.isfinite(tensor.sum(dtype=np.float64))
        if suspicious and not np.isfinite(tensor).all():
            raise UserError(f"{shard.path} is damaged: {theirs} has values that are not finite: {_ADVICE}")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class _Shard:
    """An open safetensors file and its path."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, open_file(path, _ADVICE)

    def __repr__(self) -> str:
        return f"_Shard({self.path})"


def _tensors(directory: Path) -> dict[str, _Shard]:
    """The learned tensors of a directory by their names there, each with the file that it is in."""
    if (directory / WEIGHTS).exists():
        shard = _Shard(directory / WEIGHTS)
        places = dict.fromkeys(shard.file.layout, shard)
    elif (directory / INDEX).exists():
        places = _sharded(directory, directory / INDEX)
    else:
        for name in PICKLES:
            if (directory / name).exists():
                raise _refused_pickle(directory / name)
        raise UserError(f"{directory / WEIGHTS} is missing: name a directory with config.json and {WEIGHTS}")
    return {name: shard for name, shard in places.items() if not _MASK.fullmatch(name)}


def _sharded(directory: Path, index: Path) -> dict[str, _Shard]:
    """The tensors that an index places in several files, as in {"weight_map": {"wte.weight": "a.safetensors"}}."""
    weight_map = read_json(index, {"weight_map": {}}, "an index of safetensors files", _ADVICE)["weight_map"]
    for name, file in weight_map.items():
        if not TEXT.holds(file) or "/" in file or "\\" in file or not file.endswith(".safetensors"):
            raise UserError(f"{index} places {shown(name)} in {shown(file)}, which is no safetensors file beside it")
    shards = {file: _Shard(directory / file) for file in sorted(set(weight_map.values()))}
    for name, file in weight_map.items():
        if name not in shards[file].file.layout:
            raise UserError(f"{directory / file} lacks the tensor {shown(name)} that {index} places there: {_ADVICE}")
    return {name: shards[file] for name, file in weight_map.items()}


def _our_name(name: str) -> str:
    return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"


def _refused_pickle(path: Path) -> UserError:
    return UserError(
        f"{path} is a pickle, which can run any program when it is opened, so hipgpt does not open it: convert it to "
        f"{WEIGHTS} with transformers (`AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR)`), in a place "
        "where you trust it"
    )
