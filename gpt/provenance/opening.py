"""What tokens.json describes, opened: the tokens of a run, and the texts that they were made from."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from gpt.corpus.sources import Sources, Texts
from gpt.corpus.text_file import Source
from gpt.corpus.token_files import recognized
from gpt.provenance.files import locate
from gpt.provenance.record import Info, files_of, paths_of
from gpt.run import Run
from gpt.system.filesystem import array_on_disk
from gpt.tokens import Tokens


def tokens_of(run: Run, info: Info) -> Tokens:
    """The run's tokens: tokens.bin, or the files that --tokens named, and then those of --val-tokens.

    Raises UserError if one is missing or has become another kind of file, and OSError.
    """
    if "token_files" not in info:
        return Tokens([array_on_disk(run.tokens_path, np.dtype(info["dtype"]).newbyteorder("<"), info["count"])])
    return Tokens([recognized(path, info["vocab_size"]).mapped() for path, _ in token_files(run, info)])


def counted_of(run: Run, info: Info) -> np.ndarray | None:
    """Which of the run's tokens a model learns, uint8 [n]; None if that is all of them. Raises OSError."""
    return array_on_disk(run.counted_path, np.dtype(np.uint8), info["count"]) if "counted" in info else None


def token_files(run: Run, info: Info) -> list[tuple[Path, Info]]:
    """All token files, those that are held out last, each with its section."""
    files = [*files_of(info), *(info["held_out"]["sources"] if "held_out" in info else [])]
    return [(locate(run, file["path"]), file) for file in files]


def texts_of(run: Run, info: Info) -> Texts:
    """Both texts, as they were read when the tokens were made. Raises UserError if a file cannot be read now."""
    held_out = _sources_of(run, {"corpus": info["held_out"]}) if "held_out" in info else None
    return Texts(_sources_of(run, info), held_out)


def _sources_of(run: Run, info: Info) -> Sources:
    """The files of a text, as they were read when the tokens were made. Raises UserError if one cannot be read now."""
    files, paths = [locate(run, file["path"]) for file in files_of(info)], tuple(paths_of(run, info))
    if "text" in info:
        return Sources(paths, [replace(Source.of(files[0]), format="plain", conversations=False)])
    encoding, field = info["corpus"]["encoding"], info["corpus"]["text_field"]
    seed = info["corpus"].get("shuffle_documents")
    return Sources(paths, [Source.of(file, encoding, field) for file in files], encoding, field, seed)
