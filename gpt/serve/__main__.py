"""Starts the front (front.py). hipgpt serve does that; users need not.

Its parent sends the directories to import from, because nothing of where it runs may take their place.
"""

import pickle
import sys

if __name__ == "__main__":
    sys.path[:] = pickle.load(sys.stdin.buffer)

    from gpt.serve import front

    front.run(sys.stdin.buffer)
