"""Text to token ids and back.

tokenizer.py is the way in: a `Tokenizer` learns a vocabulary, encodes and decodes. The other modules, in the order in
which a text passes through them:
- text.py: a text is cut into blocks at seams, places at which every tokenizer cuts.
- encoding.py: `Encoder.encode` takes blocks and yields their ids. It uses the modules below, and threads.
- marks.py: finds `<|endoftext|>` and other marks, which stand for themselves.
- splits.py, gpt4o.py: cut a block into chunks, and chunks into words. characters.py knows white space, letters and
  digits; unicode_table.py lists them.
- breaks.py: cuts chunks of Chinese, Japanese, Thai … further, at places that no token can span.
- lexicon.py: numbers the distinct chunks and words, so that each is cut or merged only once.
- spelling.py: spells words in symbols, and turns the pieces of tokens into text.
- bpe.py: `learn` finds the merges.
- merges.py: `Merges.apply` merges the symbols of words.
- vocabulary.py: a `Vocabulary` is all that decides which ids a text has. huggingface.py keeps it in a tokenizer.json.

Each function that works on arrays has an example in its docstring. tests/tokenizer/test_examples.py runs them all.
"""

from gpt.tokenizer.marks import END_OF_TEXT
from gpt.tokenizer.tokenizer import Tokenizer, lost_note

__all__ = ["END_OF_TEXT", "Tokenizer", "lost_note"]
