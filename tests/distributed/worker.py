"""A command whose ranks do nothing but talk to each other: python -m tests.distributed.worker SCENARIO --out DIR.

It ends as `hipgpt` ends. Each rank writes its process number to DIR/RANK.pid and its result to DIR/RANK.json.
"""

import ctypes
import json
import os
import time
from pathlib import Path

import click

from gpt.commands.command_line import Program
from gpt.distributed import control as control_plane
from gpt.distributed.control import Control
from gpt.distributed.launch import Place, find
from gpt.errors import UserError
from gpt.system import interrupts

interrupts.begin()
control_plane.GRACE = 0.5  # a quarter of the program's, because many tests wait for it


@click.group(cls=Program, epilog="")
def main() -> None:
    pass


def scenario(function):
    """Make `function(control, out, rank)` a subcommand. --gpus N: the first rank starts the others."""

    def run(out: Path, gpus: int, patience: float, silence: float, rank: int, absent: int) -> int | None:
        place = find(os.environ) or Place(0, gpus, 0, gpus, "gpus")
        (out / f"{place.rank}.pid").write_text(str(os.getpid()))
        if place.rank == absent:
            return 7
        return function(Control(place, patience=patience, silence=silence), out, rank)

    options = (
        click.Option(["--out"], type=click.Path(path_type=Path)),
        click.Option(["--gpus"], type=int),
        click.Option(["--patience"], default=20.0),
        click.Option(["--silence"], default=60.0),
        click.Option(["--absent"], type=int),  # the one that ends before it comes
        click.Option(["--rank"], type=int),  # the one that does something special
    )
    main.add_command(click.Command(function.__name__, params=list(options), callback=run))
    return function


def write(control: Control, out: Path, **result: object) -> None:
    (out / f"{control.place.rank}.json").write_text(json.dumps(result))


@scenario
def talk(control: Control, out: Path, _rank: int) -> None:
    """Share and gather, two times."""
    me = control.place.rank
    results = []
    for turn in range(2):
        results.append(control.share({"from": me, "turn": turn, "text": "ä\n"}))
        results.append(control.gather([me, turn]))
    control.close()
    write(control, out, results=results)


@scenario
def steps(control: Control, out: Path, _rank: int) -> int | None:
    """Take steps of 10 ms until a signal stops them. Rank r is about 5 r steps behind. `told` means: by a signal."""
    me, step = control.place.rank, 0
    control.share()
    with interrupts.deferred((out / f"{me}.told").touch, lambda: f"farewell {me}") as stop:
        control.listen(lambda: stop.received)
        while control.may_begin(step + 1):
            step += 1
            if step == 1:
                (out / f"{me}.began").touch()
                time.sleep(0.05 * me)
            time.sleep(0.01)
        write(control, out, step=step, stopped_by=control.stopped_by)
        control.close()
    return 128 + control.stopped_by


@scenario
def early(control: Control, out: Path, rank: int) -> int:
    """Rank `rank` hears a signal before any step, which would be the third here."""
    control.listen(lambda: 15 if control.place.rank == rank else None)
    while control.stopped_by is None:
        time.sleep(0.01)
    write(control, out, may_begin=control.may_begin(3))
    control.close()
    return 128 + control.stopped_by


@scenario
def late(control: Control, out: Path, _rank: int) -> int:
    """Rank 0 begins steps 1 to 9 at once, the others step 1; the signal comes while all are busy for a second."""
    me = control.place.rank
    begun = [step for step in range(1, 10 if me == 0 else 2) if control.may_begin(step)]
    control.gather(None)
    control.share()
    control.listen(lambda: 12 if me else None)
    time.sleep(1)
    while control.may_begin(begun[-1] + 1):
        begun.append(begun[-1] + 1)
        time.sleep(0.01)
    control.close()
    write(control, out, begun=begun, stopped_by=control.stopped_by)
    return 0


@scenario
def wait(control: Control, out: Path, _rank: int) -> None:
    """All wait for the first rank, which never shares anything."""
    control.share()
    (out / f"{control.place.rank}.began").touch()
    if control.place.rank:
        control.share()
    time.sleep(60)


@scenario
def block(control: Control, out: Path, _rank: int) -> None:
    """All main threads wait for something else, as for a collective operation."""
    control.share()
    (out / f"{control.place.rank}.began").touch()
    time.sleep(60)


@scenario
def wrong(control: Control, _out: Path, rank: int) -> None:
    """Rank `rank` makes a mistake that the user can correct."""
    control.share()
    if control.place.rank == rank:
        raise UserError("--batch is 7,\nbut must be 8")
    control.share()
    control.close()


@scenario
def crash(control: Control, _out: Path, rank: int) -> None:
    """Rank `rank` has a bug."""
    control.share()
    if control.place.rank == rank:
        raise ZeroDivisionError("by nothing")
    control.share()
    time.sleep(60)


@scenario
def exhaust(control: Control, _out: Path, rank: int) -> None:
    """Rank `rank` runs out of memory."""
    if control.place.rank == rank:
        raise MemoryError
    control.share()
    time.sleep(60)


@scenario
def hold_interpreter(control: Control, out: Path, rank: int) -> None:
    """Rank `rank` lets no other thread run for 3/4 of the silence that counts as hanging."""
    control.share()
    if control.place.rank == rank:
        ctypes.PyDLL(None).usleep(int(control.silence * 0.75e6))
    control.gather(None)
    control.share()
    control.close()
    write(control, out, done=True)


if __name__ == "__main__":
    main()
