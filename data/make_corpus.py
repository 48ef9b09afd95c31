"""Write data/data.txt, the text that hipgpt learns from when it is given no other: small stories, made by a grammar.

    python data/make_corpus.py

The people, places and plots of the stories are in story_grammar.py and in the plots_of_*.py that it imports. This file
tells the stories. A story is a list of beats, and a beat is a list of ways to say it. A way of saying it is a template:
- `[a|b|c]` becomes one of a, b, c, at random, and may be nested;
- `{hero}` becomes the name of the story's hero, `{Hero}` the same with a capital, `{a tool}` a tool with its article.
The text is the same on every machine: the random numbers are SplitMix64 (Steele et al. 2014), not Python's.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import story_grammar as grammar

TARGET = Path(__file__).with_name("data.txt")
SIZE = 1_300_000  # characters of the text: the first story that passes this is the last
SEED = 2024

T = TypeVar("T")

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(a )?(\w+)\}")


class Dice:
    """SplitMix64: 64-bit integers that look random and are the same everywhere."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def below(self, n: int) -> int:
        """An integer in 0 … n − 1. The bias of the remainder is n / 2⁶⁴."""
        self.state = (self.state + 0x9E3779B97F4A7C15) % 2**64
        z = self.state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return (z ^ (z >> 31)) % n

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, each equally likely."""
        return options[self.below(len(options))]


def cast(dice: Dice) -> dict[str, str]:
    """The words for one story's slots: hero, friend and elder with their pronouns, a place, things."""
    slots: dict[str, str] = {}
    names = {name: pronouns for pronouns, group in grammar.NAMES.items() for name in group}
    for role in ("hero", "friend"):
        slots[role] = dice.pick([name for name in names if name not in slots.values()])
        slots |= pronouns_of(role, names[slots[role]])
    name, pronouns = dice.pick(grammar.ELDERS)
    slots |= {"elder": name, **pronouns_of("elder", pronouns)}
    for slot, options in grammar.THINGS.items():
        slots[slot] = dice.pick(options)
    return slots


def pronouns_of(role: str, pronouns: str) -> dict[str, str]:
    """`hero` gets the bare slots he, him, his, self; other roles get friend_he, elder_his, …"""
    prefix = "" if role == "hero" else f"{role}_"
    return {prefix + slot: word for slot, word in zip(("he", "him", "his", "self"), pronouns.split(), strict=True)}


def say(template: str, slots: dict[str, str], dice: Dice) -> str:
    """A template with its choices made and its slots filled, and a capital at its beginning."""
    while choice := _CHOICE.search(template):
        template = template[: choice.start()] + dice.pick(choice[1].split("|")) + template[choice.end() :]
    sentence = _SLOT.sub(lambda slot: fill(slot[2], slots, with_article=bool(slot[1])), template)
    start = 1 if sentence.startswith('"') else 0
    return sentence[:start] + sentence[start].upper() + sentence[start + 1 :]


def fill(slot: str, slots: dict[str, str], with_article: bool) -> str:
    text = slots[slot.lower()]
    if with_article:
        text = ("an " if text[0] in "aeiou" else "a ") + text
    return text[0].upper() + text[1:] if slot[0].isupper() else text


def tell(dice: Dice) -> str:
    """One story: an opening, the beats of a plot, a closing; in two or three paragraphs."""
    slots = cast(dice)
    plot = dice.pick(list(grammar.PLOTS.values()))
    beats = [dice.pick(grammar.OPENINGS), *(dice.pick(beat) for beat in plot), dice.pick(grammar.CLOSINGS)]
    sentences = [say(template, slots, dice) for template in beats if template]
    cuts = [0, 3 + dice.below(2), len(sentences) - 2 - dice.below(2), len(sentences)]
    return "\n".join(" ".join(sentences[a:b]) for a, b in zip(cuts, cuts[1:], strict=False) if a < b)


def corpus(size: int = SIZE, seed: int = SEED) -> str:
    """Stories, with a blank line between them, until they fill `size` characters."""
    dice, stories, written = Dice(seed), [], 0
    while written < size:
        stories.append(tell(dice))
        written += len(stories[-1]) + 2
    return "\n\n".join(stories) + "\n"


if __name__ == "__main__":
    text = corpus()
    temporary = TARGET.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, TARGET)
    print(f"{TARGET}: {len(text.encode()):,} bytes, {text.count(chr(10) * 2) + 1:,} stories")
