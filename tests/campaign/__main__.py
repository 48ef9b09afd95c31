"""The command: `python -m tests.campaign --help`."""

import math
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait

import click

from tests.campaign import fault, kill, mutate, power, process, race
from tests.campaign.scenarios import SCENARIOS, Failure, Lab, generic

KINDS = {"kill": kill, "fault": fault, "power": power, "mutate": mutate, "race": race}

Result = tuple[str, int, float, Failure | None]  # kind, seed, seconds, failure


@click.command()
@click.option("--kind", "kinds", type=click.Choice(list(KINDS)), multiple=True, show_default="all",
              help="Kinds of trouble to try.")  # fmt: skip
@click.option("--seconds", default=120.0, show_default=True, metavar="S", help="Time to share among the kinds.")
@click.option("--trials", type=int, metavar="N", help="Trials of each kind, however long they take.")
@click.option("--seed", default=0, show_default=True, metavar="N", help="Seed of the first trial; the next has N + 1.")
@click.option("--jobs", default=os.cpu_count(), show_default="CPUs", metavar="N", help="Trials at a time.")
def main(kinds: Sequence[str], seconds: float, trials: int | None, seed: int, jobs: int) -> None:
    """Try to make hipgpt lose work. Print each failure with the command that repeats it; exit status 1 if there is one.

    On a system that does not let the campaign see system calls, say so and try nothing.
    """
    if reason := process.obstacle():
        print(f"The campaign was not run: {reason}")
        return
    process.prepare()
    kinds = kinds or tuple(KINDS)
    results: dict[str, list[Result]] = {kind: [] for kind in kinds}
    with Lab() as lab:
        for scenario in SCENARIOS:
            lab.known(scenario)
        for result in _results(lab, kinds, seconds / len(kinds), trials, seed, jobs):
            results[result[0]].append(result)
            if sys.stderr.isatty():
                done = ", ".join(f"{kind} {len(found)}" for kind, found in results.items())
                print(f"\r{done} ", end="", file=sys.stderr, flush=True)
    print(_table(results))
    failures = [failure for found in results.values() for *_, failure in found if failure]
    if trials == 1:
        for failure in failures:
            print("\n".join(failure.story))
    sys.exit(bool(failures) or not all(results.values()))


def _results(
    lab: Lab, kinds: Sequence[str], share: float, trials: int | None, seed: int, jobs: int
) -> Iterator[Result]:
    """The results of all trials as they come, from `jobs` processes. RuntimeError if one of those dies."""
    context = multiprocessing.get_context("fork")
    workers: dict[Connection, multiprocessing.process.BaseProcess] = {}
    for index in range(min(jobs, trials or jobs)):
        ours, theirs = context.Pipe(duplex=False)
        seeds = range(seed + index, seed + trials if trials else sys.maxsize, jobs)
        workers[ours] = context.Process(target=_work, args=(theirs, lab, kinds, None if trials else share, seeds))
        workers[ours].start()
        theirs.close()
    while workers:
        for ours in wait(list(workers)):
            try:
                yield ours.recv()
            except EOFError:
                worker = workers.pop(ours)
                worker.join()
                if worker.exitcode:
                    raise RuntimeError("a process of the campaign died") from None


def _work(results: Connection, known: Lab, kinds: Sequence[str], share: float | None, seeds: Sequence[int]) -> None:
    """Run trials of each kind, for `share` seconds or through all `seeds`."""
    with Lab(known) as lab:
        for kind in kinds:
            end = time.monotonic() + (share or math.inf)
            for seed in seeds:
                began = time.monotonic()
                if began >= end:
                    break
                try:
                    failure = KINDS[kind].trial(lab, seed)
                except Exception as error:  # a failure too, but of the driver
                    story = [*lab.story, traceback.format_exc()]
                    failure = Failure(f"could not be judged: {type(error).__name__} {generic(str(error))}", story)
                results.send((kind, seed, time.monotonic() - began, failure))


def _table(results: dict[str, list[Result]]) -> str:
    """Trials and failures by kind, and for each kind of failure how often it came and the seed of one."""
    lines = [f"{'KIND':8}{'TRIALS':>8}{'FAILURES':>10}{'SECONDS':>9}"]
    for kind, found in results.items():
        failed = [result for result in found if result[3]]
        lines.append(f"{kind:8}{len(found):8}{len(failed):10}{sum(result[2] for result in found):9.0f}")
    for kind, found in results.items():
        seeds: dict[str, list[int]] = {}
        for _, seed, _, failure in found:
            if failure:
                seeds.setdefault(failure.kind, []).append(seed)
        for name, each in sorted(seeds.items(), key=lambda item: -len(item[1])):
            lines += [f"{len(each):4} × {kind}: {name}",
                      f"       python -m tests.campaign --kind {kind} --trials 1 --seed {min(each)}"]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
