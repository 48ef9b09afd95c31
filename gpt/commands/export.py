"""`hipgpt export`: writes a model for other programs."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpt.commands.command_line import PATH, Option, command
from gpt.commands.models import run_option
from gpt.commands.options import CHECKPOINT, RUNS
from gpt.errors import UserError

if TYPE_CHECKING:
    from gpt.checkpoint import Checkpoint


@command(
    "export",
    short_help="Write a model for transformers or llama.cpp.",
    sections={
        "Options": (
            run_option("Run whose model to export."),
            Option("--out", metavar="PATH", required=True, type=PATH,
                   help="Directory to create, or file with --format gguf."),
            Option("--format", "format_name", type=click.Choice(["hf", "gguf", "peft"]), default="hf",
                   help="Format to write. hf: a directory that Hugging Face's from_pretrained loads; gguf: a file for "
                        "llama.cpp; peft: a directory for PEFT, with the adapters of train --lora alone."),
            Option("--type", "type_name", type=click.Choice(["f32", "f16", "q8_0"]), default_text="f32",
                   help="Number format of the matrices in a GGUF file. q8_0: 8 bits, in blocks with a scale each."),
            *CHECKPOINT, RUNS,
        ),
    },
    epilog="""
    hipgpt export --run-name mine --out mine-hf
    hipgpt export --run-name mine --out mine.gguf --format gguf --type q8_0
    """,
)  # fmt: skip
def export_model(
    run_name: str, runs_dir: Path, out: Path, format_name: str, type_name: str | None, step: int | None, best: bool
) -> None:
    """Write a model and its tokenizer for other programs: Hugging Face's transformers, or llama.cpp.

    Adapters of train --lora are merged into the model, except with --format peft.
    """
    from gpt import checkpoint
    from gpt.export import export, export_adapters
    from gpt.gguf import export_gguf
    from gpt.run import Run

    if format_name != "gguf" and out.suffix.lower() == ".gguf":
        raise UserError(f"--out {out} would be a directory, as --format is {format_name}: give --format gguf, too")
    if format_name != "gguf" and type_name is not None:
        raise UserError(f"--type {type_name} is for --format gguf: a Hugging Face directory has float32")
    saved = checkpoint.load(Run(run_name, runs_dir), step, best)
    if format_name == "gguf":
        paths = [export_gguf(saved, out, type_name or "f32")]
    elif format_name == "peft":
        paths = export_adapters(saved, out)
    else:
        paths = export(saved, out, _drawing(saved))
    for path in paths:
        click.echo(path)


def _drawing(saved: "Checkpoint") -> Callable[[Path], object] | None:
    """A function that draws the curves of a training up to a checkpoint. None if there are none, or no matplotlib."""
    from gpt.metrics import picture
    from gpt.metrics.curves import LOSSES, curve

    try:
        import_module("matplotlib.figure")
    except ImportError:
        return None
    lines = [line for line in saved.run.metrics() if line["step"] <= saved.step]
    if not any(curve(lines, key, "steps").x for key, _ in LOSSES.quantities):
        return None
    return partial(picture.draw, {saved.run.name: lines}, "steps")
