"""The commands of `hipgpt`: each module declares one, or a few that belong together, and has the function that runs it.

A function imports the modules that it needs only when it runs, so `hipgpt --help` is fast. It parses nothing and
computes nothing: it calls the rooms below and prints their results. `command_line` has the classes of commands and
options, `options` those options that several commands have, `models` those that choose a trained model, and gpt/cli.py
the list of the commands.
"""
