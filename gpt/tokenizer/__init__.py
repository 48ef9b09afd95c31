"""Text to token ids and back.

tokenizer.py is the way in: a `Tokenizer` learns a vocabulary, encodes and decodes. The other modules, in the order in
which a text passes through them:
- text.py: a text is cut into blocks at seams, places at which every tokenizer cuts.
- encoding.py: `Encoder.encode` takes blocks and yields their ids. It uses the three modules below, and threads.
- spelling.py: cuts a block into chunks and words, and spells words in ids of the alphabet. unicode_table.py lists the
  letters and digits.
- lexicon.py: numbers the distinct chunks and words, so that each is cut or merged only once.
- bpe.py: `learn` finds the merges, `Merges.apply` merges the symbols of words.

Each function that works on arrays has an example in its docstring. tests/tokenizer/test_examples.py runs them all.
"""

from gpt.tokenizer.text import END_OF_TEXT
from gpt.tokenizer.tokenizer import Tokenizer, lost_note

__all__ = ["END_OF_TEXT", "Tokenizer", "lost_note"]
