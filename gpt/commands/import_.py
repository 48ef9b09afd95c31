"""`hipgpt import`: makes a run of another program's GPT-2. (A module cannot have the name of the keyword.)"""

from pathlib import Path

import click

from gpt.commands.command_line import PATH, Option, command
from gpt.commands.options import RUNS


@command(
    "import",
    short_help="Make a run of a GPT-2 that another program trained.",
    sections={
        "Options": (
            Option("--run-name", metavar="NAME", required=True, help="Name of the run to make."),
            RUNS,
        ),
    },
    epilog="hipgpt import data/gpt2 --run-name gpt2",
)  # fmt: skip
@click.argument("source", metavar="DIR", type=PATH)
def import_model(source: Path, run_name: str, runs_dir: Path) -> None:
    """Make a run of the GPT-2 in DIR, a Hugging Face directory.

    DIR has config.json, model.safetensors (or several files with an index) and the tokenizer. The run can generate,
    be evaluated and exported, and other runs can start from it (train --from).
    """
    from gpt.huggingface import foreign_chat_template
    from gpt.plan import describe
    from gpt.pretrained import import_into
    from gpt.run import Run

    run = Run(run_name, runs_dir)
    template = foreign_chat_template(source)
    made = import_into(run, source, click.echo)
    if template:
        click.echo(f"Note: {template} has a chat template, which is not imported: hipgpt has one of its own")
    click.echo(f"Imported {describe(made.model_config)} to {run.path}")
    tuning = f"hipgpt train --from {run.name}{run.elsewhere} --data-path FILE"
    click.echo(f'Next: hipgpt generate {run.options} --prompt "…", or {tuning}')
