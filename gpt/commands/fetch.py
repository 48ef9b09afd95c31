"""`hipgpt fetch`: downloads a text or GPT-2."""

from pathlib import Path

import click

from gpt.commands.command_line import command
from gpt.config import DATA_PATH


@command(
    "fetch",
    short_help="Download a well-known text, GPT-2 or its tokenizer.",
    sections={"Options": ()},
    epilog="""
    hipgpt fetch shakespeare
    hipgpt fetch gpt2
    """,
)
@click.argument("name", type=click.Choice(["shakespeare", "gpt2", "gpt2-tokenizer"]))
def fetch_files(name: str) -> None:
    """Download into data/: shakespeare, a text to train on (1.1 MB); gpt2, OpenAI's model with 124 million parameters
    (550 MB); or gpt2-tokenizer, its vocabulary alone (1.5 MB).

    Each file is checked by its SHA-256. A download that breaks goes on where it stopped.
    """
    from gpt.fetch import SOURCES, fetch
    from gpt.system.console import Console

    console = Console()
    for source in SOURCES[name]:
        with console.progress(f"Downloading {source.file}", 0) as advance:
            path = fetch(source, Path(DATA_PATH).parent, advance)
        console.line(f"Saved to {path}")
    if name == "shakespeare":
        console.line(f"Next: hipgpt train --data-path {path}")
    elif name == "gpt2":
        console.line(f"Next: hipgpt import {path.parent} --run-name gpt2")
