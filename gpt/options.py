"""The options that several commands have. gpt/cli.py has those of a single command."""

from pathlib import Path

import click

from gpt.command_line import Option, Setting
from gpt.config import DATA_PATH, PRESETS, RUNS_DIR, ModelConfig, TokenizerConfig, TrainConfig


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
    type=click.Path(path_type=Path), help="Directory that holds the runs.",
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
DATA = Option(
    "--data-path", metavar="FILE", help="UTF-8 text to learn from.",
    default_text=f"{DATA_PATH} if it exists, else the text that comes with hipgpt",
    advice="hipgpt reads one text, so join the files with <|endoftext|> between them",
)  # fmt: skip
TOKENIZER = (
    Setting(TokenizerConfig, "kind", "--tokenizer",
            help="Kind of tokenizer. word: splits at white space and decodes to single spaces. byte: lossless for any "
                 "text."),
    Setting(TokenizerConfig, "vocab_limit", "--vocab-size", metavar="N", help="Maximum vocabulary size."),
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
