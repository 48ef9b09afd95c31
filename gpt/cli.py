"""The `hipgpt` command: the list of its commands, which gpt/commands declares."""

from gpt.system import interrupts

interrupts.begin()  # before the imports below, which take a while

import click

import gpt
from gpt.commands.bench import bench_model
from gpt.commands.chat import chat_with_model
from gpt.commands.command_line import Program
from gpt.commands.completion import print_completion
from gpt.commands.doctor import examine_machine
from gpt.commands.eval import evaluate_model
from gpt.commands.export import export_model
from gpt.commands.fetch import fetch_files
from gpt.commands.generate import generate_text
from gpt.commands.import_ import import_model
from gpt.commands.runs import list_runs, plot_runs, show_run
from gpt.commands.serve import serve_models
from gpt.commands.tokenize import tokenize_text
from gpt.commands.train import train_model


@click.group(
    cls=Program, invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""
    hipgpt train --preset tiny --run-name first
    hipgpt generate --run-name first --prompt "On a bright morning"
    """,
)  # fmt: skip
@click.version_option(gpt.__version__, prog_name="hipgpt")
@click.pass_context
def main(context: click.Context, /) -> None:
    """Train GPT-2 style language models from text files, on AMD GPUs, NVIDIA GPUs and plain CPUs.

    The example below trains a small model on the text that comes with hipgpt, in about a minute on a CPU.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for each in (  # those that are used first come first
    train_model, generate_text, chat_with_model, tokenize_text, evaluate_model, list_runs, show_run, plot_runs,
    serve_models, export_model, import_model, fetch_files, bench_model, examine_machine, print_completion,
):  # fmt: skip
    main.add_command(each)

if __name__ == "__main__":
    main()
