"""Starts the front (front.py). hipgpt serve does that; users need not.

Its parent sends the directories to import from, because nothing of where it runs may take their place.
"""

import pickle
import sys

if __name__ == "__main__":
    try:
        sys.path[:] = pickle.load(sys.stdin.buffer)
    except EOFError:
        sys.exit("hipgpt serve starts this program: it says here what there is to do")

    from gpt.serve import front

    front.run(sys.stdin.buffer)
