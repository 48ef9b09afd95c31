"""Conclusions from the log of a run: its curves, and a summary.

- curves.py: a quantity of metrics.jsonl, such as the loss, against steps, tokens or time.
- picture.py and terminal.py draw curves, the one into a file (by matplotlib), the other as text (by uniplot).
- summary.py: how far a run is, how good, on what data. listing.py: the same in words, for one run and for many.
"""
