"""Runs the `hipgpt` command (gpt/cli.py) from a checkout that is not installed: `python cli.py train --help`."""

from gpt.cli import main

if __name__ == "__main__":
    main()
