"""Kill -9 at every system call that changes a file, or that prints.

The calls of each scenario are known from a run without trouble. A trial takes one of them, and kills the command just
before it, or when half of its bytes are written. In one trial of eight, the first command that goes on is killed too.
Then `Lab.judge` goes on. Seeds 0, 1, 2, … go through all calls of all scenarios in a scattered order, so as many
trials as there are calls visit each call exactly once.
"""

from functools import cache
from random import Random

from tests.campaign.process import CHANGING, Order
from tests.campaign.scenarios import SCENARIOS, Failure, Lab, Scenario, scattered

_COUNTED = {*CHANGING, "new"}  # the journal says "new" for a file that create makes


@cache
def points(lab: Lab) -> list[tuple[Scenario, int]]:
    """Each scenario with the number of each of its calls, from 1."""
    counts = {each: sum(event.call in _COUNTED for event in lab.known(each).events) for each in SCENARIOS}
    return [(scenario, at) for scenario, count in counts.items() for at in range(1, count + 1)]


def trial(lab: Lab, seed: int) -> Failure | None:
    random = Random(seed)
    scenario, at = scattered(points(lab), seed)
    lab.begin(lab.known(scenario).before)
    outcome = lab.run(scenario.command, Order(CHANGING, at, random.choice(["kill", "half"])), real=seed % 64 == 0)
    if outcome.status != -9:
        return Failure("was not killed", lab.story)
    if random.random() < 1 / 8:
        again = Order(CHANGING, random.randint(1, 40), "kill")
        outcome = lab.run(scenario.resume or scenario.command, again)
        if outcome.status != -9 and outcome.fault:
            return Failure(f"going on: {outcome.fault}", lab.story)
    return lab.judge(scenario)
