"""Two or more commands at once on one run, with random delays.

A trial starts the commands of one of `RACES` in a random order, each up to 0.3 s after the first. It makes most of them
sleep at a random call, so that the files have changed since a command looked at them. Each must end well, or with
status 2, one line, and a reason that the race allows. If the scenario's own command ended well, the files must be the
same, bit for bit, as if it had been alone; else `Lab.judge` goes on. No step may be trained twice, and no export may be
half done.
"""

import re
import time
from dataclasses import dataclass
from random import Random

from safetensors.numpy import load

from tests.campaign.process import CHANGING, READING, Order, Outcome, Running
from tests.campaign.scenarios import (
    LATEST,
    LEARN,
    RESUME,
    SCENARIOS,
    SIZES,
    TRAIN,
    Failure,
    Lab,
    Scenario,
    content,
    differences,
    generic,
)

TAKEN = "another process|already has|has reached|would overwrite"
NOT_YET = "there is no run|no checkpoint yet|does not exist|before its first checkpoint|has no best checkpoint"
BUSY = Scenario(
    "train, pruning", f"train --run-name r --steps 12 {LEARN} {SIZES} --keep-last 1 --ckpt-every 1 --eval-every 1",
    resume=RESUME,
)  # fmt: skip
GENERATE = "generate --run-name r --prompt the --num-tokens 4"
BY_NAME = {each.name: each for each in SCENARIOS} | {BUSY.name: BUSY}


@dataclass(frozen=True)
class Race:
    """The command of `scenario` beside `others`. Any of them may be refused with a message that matches `refused`."""

    scenario: str
    others: tuple[str, ...]
    refused: str = "(?!)"  # matches nothing

    def __str__(self) -> str:
        return f"{self.scenario} | " + " | ".join(command.split()[0] for command in self.others)


TOO_LONG = TRAIN.replace("--seq 8", "--seq 100000")
RACES = (
    Race("train", (TRAIN,), TAKEN),
    Race("train", (TRAIN, TRAIN), TAKEN),
    Race("train, tokenized", (BY_NAME["train, tokenized"].command,), TAKEN),
    Race("train --resume", (RESUME,), TAKEN),
    Race("train --ckpt, a branch", (f"train --ckpt {LATEST} --run-name b --steps 4",), TAKEN),
    Race("train --ckpt, another text", (f"train --ckpt {LATEST} --run-name b --steps 4 --data-path other.txt",), TAKEN),
    Race("train", (TOO_LONG,), TAKEN + "|too|needs|at least"),  # refused, but holds the lock for a moment
    Race("tokenize", (f"tokenize --run-name r {LEARN}",), TAKEN),
    Race("tokenize --reset", (f"tokenize --run-name r {LEARN} --reset",), TAKEN),
    Race("train", (f"tokenize --run-name r {LEARN}",), TAKEN),
    Race("train, tokenized", (f"tokenize --run-name r {LEARN} --reset",), TAKEN + "|would replace the tokenizer"),
    Race("train, pruning", (GENERATE, "export --run-name r --out out"), NOT_YET),
    Race("train, pruning", ("runs", "runs", f"{GENERATE} --best"), NOT_YET),
    Race("train --resume", (GENERATE, "export --run-name r --out out")),
    Race("train --resume", (f"{GENERATE} --best", "export --run-name r --out out --best", "runs")),
    Race("export", ("export --run-name r --out hf",), "exists already|not empty"),
)


def trial(lab: Lab, seed: int) -> Failure | None:
    random = Random(seed)
    race = random.choice(RACES)
    scenario = BY_NAME[race.scenario]
    known = lab.known(scenario)
    lab.begin(known.before)
    commands = [scenario.command, *race.others]
    random.shuffle(commands)
    span = random.choice([0.0, 0.02, 0.1, 0.3])
    starts = sorted(random.uniform(0, span) for _ in commands)
    orders = [_delay(random, command) for command in commands]
    began, running = time.monotonic(), []
    for command, start, order in zip(commands, starts, orders, strict=True):
        time.sleep(max(0.0, began + start - time.monotonic()))
        running.append(Running(command.split(), lab.trial, order, real=seed % 64 == 0))
    outcomes = [each.wait() for each in running]
    for start, order, outcome in zip(starts, orders, outcomes, strict=True):
        when = f"{order.do} ms at call {order.at}" if order.at else "no delay"
        lab.story.append(f"(from {start * 1000:.0f} ms, {when}) {outcome}")
    problem = _problem(lab, race, scenario, outcomes)
    if problem is None and any(each.status == 0 and _is(each, scenario.command) for each in outcomes):
        wrong = differences(known.content, content(lab.trial))
        lab.story += wrong
        problem = f"status 0, but {generic(wrong[0].partition(':')[0])}" if wrong else None
    elif problem is None and (failure := lab.judge(scenario)):
        problem = failure.kind
    return Failure(f"{race}: {problem}", lab.story) if problem else None


def _delay(random: Random, command: str) -> Order:
    """An order to sleep at one of the command's calls, often an early one; or no order."""
    if random.random() < 0.2:
        return Order()
    most = random.choice([6, 12, 400] if command.startswith("train") else [6, 12, 40])
    return Order((*CHANGING, *READING), random.randint(1, most), f"delay {random.choice([5, 40, 200, 700])}")


def _problem(lab: Lab, race: Race, scenario: Scenario, outcomes: list[Outcome]) -> str | None:
    """The first thing wrong with the commands' ends or with their exports, or None. Removes the exports of readers."""
    for outcome in outcomes:
        if outcome.fault:
            return f"{outcome.command[0]}: {outcome.fault}"
        if outcome.status and not re.search(race.refused, outcome.errors):
            return f"{outcome.command[0]} is refused: {generic(outcome.errors)}"
    if any(sum(f"[Step {step}] Loss" in each.output for each in outcomes) > 1 for step in range(1, 13)):
        return "a step was trained twice"
    exported = sorted(each for each in lab.known(BY_NAME["export"]).content if each.startswith("hf/"))
    for name in ("out", "hf"):
        if (folder := lab.trial / name).is_dir():
            if sorted(f"hf/{path.name}" for path in folder.iterdir()) != exported:
                return "half an export"
            load((folder / "model.safetensors").read_bytes())
            if scenario.name != "export":
                lab.remove(folder)
    return None


def _is(outcome: Outcome, command: str) -> bool:
    return outcome.command == tuple(command.split())
