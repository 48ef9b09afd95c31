"""tokens.json: the origin of a run's tokens, remembered when they are made and checked before they are used.

record.py    what tokens.json says
files.py     a file, as it is remembered: its place, its size, its time and its digest
opening.py   the tokens and texts that tokens.json describes
checks.py    whether they are still the same
"""

from gpt.provenance.checks import check_held_out, check_text, check_tokens
from gpt.provenance.files import check_file, locate, remember, remember_all, stamp
from gpt.provenance.opening import counted_of, texts_of, tokens_of
from gpt.provenance.record import (
    Info,
    Report,
    corpus_of,
    described,
    described_tokenizer,
    identity,
    moved,
    pair_digest,
    paths_of,
    read,
    remembered,
    settings_of,
    to_json,
)
from gpt.system.reading import sha256

__all__ = [
    "Info", "Report", "check_file", "check_held_out", "check_text", "check_tokens", "corpus_of", "counted_of",
    "described", "described_tokenizer", "identity", "locate", "moved", "pair_digest", "paths_of", "read", "remember",
    "remember_all", "remembered", "settings_of", "sha256", "stamp", "texts_of", "to_json", "tokens_of",
]  # fmt: skip
