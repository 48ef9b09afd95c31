"""Text to token ids and back.

tokenizer.py is the face: a `Tokenizer` learns a vocabulary, encodes and decodes. Behind it, in the order in which a
text passes through them: text.py reads files in blocks, spelling.py cuts a block into words and words into symbols,
lexicon.py numbers the distinct words, bpe.py learns merges and applies them, encoding.py looks up each word's ids.
"""

from gpt.tokenizer.text import END_OF_TEXT
from gpt.tokenizer.tokenizer import Tokenizer, loss

__all__ = ["END_OF_TEXT", "Tokenizer", "loss"]
