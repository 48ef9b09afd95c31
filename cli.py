"""`python cli.py …`, in a checkout, is the command `hipgpt …`, which is gpt/cli.py."""

from gpt.cli import main

if __name__ == "__main__":
    main()
