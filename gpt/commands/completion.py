"""`hipgpt completion`: prints a script for the user's shell."""

import click

from gpt.commands.command_line import command
from gpt.errors import UserError


@command(
    "completion",
    params=[click.Argument(["shell"], type=click.Choice(["bash", "zsh", "fish"]))],
    short_help="Print a script that completes hipgpt's commands in a shell.",
    sections={"Options": ()},
    epilog="hipgpt completion bash",
)
def print_completion(shell: str) -> None:
    """Print a script that lets a shell complete commands, options and the names of runs.

    For bash put `eval "$(hipgpt completion bash)"` into ~/.bashrc, for zsh the same with zsh into ~/.zshrc, and for
    fish `hipgpt completion fish | source` into ~/.config/fish/config.fish.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise UserError(f"click has no completion for {shell}: update it with pip install -U click")
    click.echo(kind(click.get_current_context().find_root().command, {}, "hipgpt", "_HIPGPT_COMPLETE").source())
