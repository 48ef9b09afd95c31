"""The options that several commands have. The module of a command has those that it alone has."""

from pathlib import Path

import click

from gpt.commands.command_line import PATH_NAME, Option, PathType, Setting
from gpt.config import (
    DATA_PATH,
    NUM_TOKENS,
    PRESETS,
    RUNS_DIR,
    TOKENIZERS,
    DataConfig,
    ModelConfig,
    SamplingConfig,
    TokenizerConfig,
    TrainConfig,
)


def complete_run(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The names of runs that begin with `incomplete`: what a shell offers after --run-name."""
    from gpt.run import default_root, list_runs

    runs = list_runs(Path(context.params.get("runs_dir") or default_root()))
    return [run.name for run in runs if run.name.startswith(incomplete)]


NEW_RUN = Option(
    "--run-name", metavar="NAME", default_text="run_<timestamp>", shell_complete=complete_run,
    help="Name of the run, and of its directory in --runs-dir.",
)  # fmt: skip
RUNS = Option(
    "--runs-dir", default=RUNS_DIR, show_envvar=True, metavar="DIR",
    type=PathType(path_type=Path, readable=False, file_okay=False), help="Directory that holds the runs.",
)  # fmt: skip
PRESET = Option("--preset", type=click.Choice(list(PRESETS)), help="Named set of defaults; explicit flags override it.")
DEVICE = Option(
    "--device", default="auto", metavar="auto|cpu|gpu[:N]",
    help="Device to use. auto: the first GPU that works, else the CPU.",
)  # fmt: skip
BLAS = Option(
    "--blas", type=click.Choice(["auto", "vendor", "own"]), default="auto",
    help="Library that computes matrix products on a GPU. vendor: hipBLASLt or cuBLASLt; own: hipgpt's slower kernel; "
         "auto: the vendor's, which has to pass a check on AMD.",
)  # fmt: skip
PRECISION = Setting(
    TrainConfig, "precision", "--precision",
    help="Number format of activations and matrix products. auto: bf16 if the GPU has matrix units for it, else fp32.",
)  # fmt: skip
READING = (
    Setting(DataConfig, "encoding", "--encoding", metavar="NAME", default_text="utf-8",
            help="Encoding of the text. UTF-16 and UTF-32 with a byte order mark are recognized."),
    Setting(DataConfig, "text_field", "--text-field", metavar="NAME", default_text="text",
            help="Field of JSON objects, or column of a table, that has the text of a document. data.text is the field "
                 "text within the field data."),
)  # fmt: skip
DATA = (
    Setting(DataConfig, "data_path", "--data-path", metavar="PATH", type=PATH_NAME, multiple=True,
            help="Text to learn from: a file, a folder, a quoted pattern of names, or - for standard input. May be "
                 "given more than once.",
            default_text=f"{DATA_PATH} if it exists, else the text that comes with hipgpt"),
    Setting(DataConfig, "val_path", "--val-path", metavar="PATH", type=PATH_NAME, multiple=True,
            default_text="the end of the text",
            help="Text to hold out for validation, named as in --data-path. May be given more than once."),
    *READING,
    Setting(DataConfig, "shuffle_documents", "--shuffle-documents", metavar="SEED", default_text="their order",
            help="Shuffle the documents, by an order that the seed decides."),
)  # fmt: skip
TOKENS = (
    Setting(DataConfig, "tokens", "--tokens", metavar="PATH", type=PATH_NAME, multiple=True,
            default_text="made from the text",
            help="Tokens that another program has made, to learn from in place of a text: a file of nanoGPT's or "
                 "llm.c's, a folder or a quoted pattern. Needs --tokenizer PATH. May be given more than once."),
    Setting(DataConfig, "val_tokens", "--val-tokens", metavar="PATH", type=PATH_NAME, multiple=True,
            default_text="the end of the tokens",
            help="Tokens to hold out for validation, named as in --tokens. May be given more than once."),
)  # fmt: skip
TOKENIZER = (
    Setting(TokenizerConfig, "kind", "--tokenizer", metavar=f"{'|'.join(TOKENIZERS)}|PATH", type=PATH_NAME,
            help="Kind of tokenizer to train. word: splits at white space and decodes to single spaces; byte: lossless "
                 "for any text; char: one token per character. Or one to take: a tokenizer.json, a directory that has "
                 "one or GPT-2's vocab.json and merges.txt, one of tiktoken's files, or gpt2 for the one that "
                 "hipgpt has fetched."),
    Setting(TokenizerConfig, "vocab_limit", "--vocab-size", metavar="N", help="Maximum vocabulary size."),
    Setting(DataConfig, "sample", "--sample", metavar="BYTES", default_text="the whole text",
            help="Bytes of the text to learn the tokenizer from, evenly spread over it."),
    Setting(TokenizerConfig, "split", "--split", default_text="gpt2",
            help="Pattern that cuts a text into words, with --tokenizer byte. gpt4, or llama3: GPT-4's and Llama 3's, "
                 "numbers of up to 3 digits; qwen2: the same, single digits; gpt4o: GPT-4o's, "
                 "which cuts words before capitals too."),
    Setting(TokenizerConfig, "special_tokens", "--special-token", metavar="TEXT", multiple=True, default_text="none",
            help="Text that becomes a token of its own, such as <|user|>, and is never split. May be given more than "
                 "once."),
    Setting(TokenizerConfig, "keep_newlines", "--keep-newlines", is_flag=True, flag_value=True,
            help="Give line ends a token, with --tokenizer word."),
    Option("--reset", is_flag=True, help="Retrain the tokenizer and re-encode the text."),
)  # fmt: skip
MODEL = (
    Setting(ModelConfig, "embed_dim", "--dim", metavar="N", help="Width of the model, a multiple of --heads."),
    Setting(ModelConfig, "num_heads", "--heads", metavar="N", help="Attention heads per layer."),
    Setting(ModelConfig, "ff_hidden_dim", "--ff", metavar="N", help="Width of the feed-forward layers."),
    Setting(ModelConfig, "num_layers", "--layers", metavar="N", help="Number of transformer blocks."),
    Setting(ModelConfig, "max_seq_len", "--seq", metavar="N", help="Context length in tokens."),
    Setting(ModelConfig, "dropout", "--dropout", metavar="P", help="Fraction of activations to drop in training."),
    Setting(ModelConfig, "activation", "--activation",
            help="Activation function of the feed-forward layers."),
    Setting(ModelConfig, "tie_embeddings", "--no-tie", is_flag=True, flag_value=False,
            help="Do not tie the output layer to the embedding."),
)  # fmt: skip
BATCH = (
    Setting(TrainConfig, "batch_size", "--batch", metavar="N", help="Batch size in sequences, of each rank."),
    Setting(TrainConfig, "accumulate", "--accumulate", metavar="N",
            help="Gradient accumulation: batches per step, of each rank."),
    Setting(TrainConfig, "recompute", "--recompute/--no-recompute", is_flag=True,
            help="Compute each block again for its backward pass, which takes less memory and more time."),
)  # fmt: skip
OPTIMIZER = Setting(
    TrainConfig, "optimizer", "--optimizer",
    help="Optimizer. muon: Muon for the matrices of the blocks, AdamW for the rest.",
)  # fmt: skip
CHECKPOINT = (
    Option("--step", type=int, metavar="N", default_text="latest", help="Step of the checkpoint to use."),
    Option("--best", is_flag=True, help="Use the checkpoint with the lowest validation loss."),
)
WRITING = (
    Option("--num-tokens", "--num_tokens", default=NUM_TOKENS, metavar="N",
           help="Number of tokens to write, at most."),
    Option("--stop", "stops", multiple=True, metavar="TEXT",
           help="Text before which the model stops. May be given more than once."),
)  # fmt: skip
SAMPLING = (
    Setting(SamplingConfig, "temperature", "--temp", metavar="T",
            help="Temperature; 0 always takes the likeliest token."),
    Setting(SamplingConfig, "top_k", "--top-k", "--top_k", metavar="K",
            help="Draw from the K likeliest tokens; 0 = all."),
    Setting(SamplingConfig, "top_p", "--top-p", "--top_p", metavar="P",
            help="Draw from the fewest likeliest tokens whose probabilities add up to P; 1 = all."),
    Setting(SamplingConfig, "repetition_penalty", "--rep-penalty", "--rep_penalty", metavar="R",
            default_text=f"{SamplingConfig().penalty:g}, or {SamplingConfig(temperature=0).penalty:g} with --temp 0",
            help="Repetition penalty: values above 1 avoid tokens of the context."),
    Option("--seed", default=TrainConfig.seed, metavar="N",
           help="Random seed; the same seed writes the same texts, however many."),
)  # fmt: skip
JSON = Option("--json", "as_json", is_flag=True, help="Print one JSON object.")
