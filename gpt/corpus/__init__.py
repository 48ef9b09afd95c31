"""The text that a run learns from: files, folders and compressed records become one text, in blocks.

- finding.py: the files that --data-path names, in a fixed order.
- kinds.py: tells the compression, encoding and format of a file from its first bytes and its name.
- documents.py: the documents in a file of each format, as a stream of strings.
- conversations.py: the text of a conversation in a JSON object or a row.
- text_file.py: `Source`, a file that is read as text, with what it takes of the above.
- without_text.py: counts the documents that have no text.
- sources.py: `Sources`, the files in their order, read as one text and cut into pieces.
- standard_input.py: the copy of standard input in a run.
- token_files.py: files of ids that another program has made.
- shuffling.py: the documents of a token file in another order.

Every file, JSON object and row of a table is a document, and `<|endoftext|>` stands behind each, or the mark that a
given tokenizer has in its place. One file of plain text that is named by itself is an exception: it is the text as it
stands, and may have such marks of its own.
"""

from gpt.corpus.sources import START, Place, Sources, read_blocks
from gpt.corpus.text_file import Source

__all__ = ["START", "Place", "Source", "Sources", "read_blocks"]
