"""The memory, CPUs and disk that this process may use, if a container or a shell gives it less than the machine has.

Linux limits groups of processes (cgroups, docs.kernel.org/admin-guide/cgroup-v1 and cgroup-v2). Groups are nested, and
the smallest limit on the way up to the root rules. /proc/self/cgroup says which groups a process is in, and
/proc/self/mountinfo where their files are; a container may see its own group as the root, or a path that exists only
outside of it. Every function takes another `root` than "/", for tests.
"""

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import psutil

from gpt.errors import UserError
from gpt.system.console import size

try:
    import resource
except ImportError:  # Windows has none
    resource = None

# Keys of memory.stat for memory that the kernel gives back when it is needed. v1 sums a group and its children up as
# "total".
_RECLAIMABLE = {
    1: ("total_active_file", "total_inactive_file"),
    2: ("active_file", "inactive_file", "slab_reclaimable"),
}


def require_memory(what: str, needed: int, free: int, advice: str) -> None:
    """Raises UserError if `what` needs more than what is free, in bytes."""
    if needed > free:
        raise UserError(f"{what} needs {size(needed)} of memory, but {size(free)} is free: {advice}")


def free_memory(root: str = "/") -> int:
    """Bytes that this process could still take: of the machine, of each cgroup, and of `ulimit -v`."""
    return max(0, min([psutil.virtual_memory().available, *_group_memory(root), *_address_space()]))


def cpus(root: str = "/") -> int:
    """CPUs this process may use at once: those it may run on, or fewer if a cgroup's quota is worth fewer.

    A quota of 1.5 CPUs counts as 2, and one of half a CPU as 1.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(quota) for quota in _group_cpus(root))]))


def free_disk(path: Path) -> int | None:
    """Bytes that can be written at `path`, which need not exist yet; None if the system does not say."""
    path = Path(path).absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _group_memory(root: str) -> Iterator[int]:
    """Bytes left in every group that has a limit. Page cache counts as free: the kernel gives it back."""
    for version, folder in _groups(root, "memory"):
        if version == 2:
            names, usage = ("memory.max", "memory.high"), "memory.current"
        else:
            names, usage = ("memory.limit_in_bytes",), "memory.usage_in_bytes"
        limits = [limit for name in names if (limit := _number(folder / name)) is not None]
        used = _number(folder / usage)
        if limits and used is not None:
            stat = _fields(folder / "memory.stat")
            yield min(limits) - used + sum(stat.get(name, 0) for name in _RECLAIMABLE[version])


def _group_cpus(root: str) -> Iterator[float]:
    """The quota of every group that has one, in CPUs."""
    for version, folder in _groups(root, "cpu"):
        if version == 2:
            quota, period = [*_text(folder / "cpu.max").split(), "max", "100000"][:2]
        else:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        with suppress(ValueError, ZeroDivisionError):  # "max", "-1" and no file stand for no limit
            if int(quota) > 0:
                yield int(quota) / int(period)


def _address_space() -> Iterator[int]:
    """Bytes left of `ulimit -v`, if that is set."""
    if resource and hasattr(resource, "RLIMIT_AS"):
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            yield limit - psutil.Process().memory_info().vms


def _groups(root: str, controller: str) -> Iterator[tuple[int, Path]]:
    """(version, folder) of each group that this process is in under `controller`, from its own one to the root's."""
    paths = {}  # version → the group's path in that hierarchy
    for line in _text(Path(root, "proc/self/cgroup")).splitlines():
        number, names, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not names:
            paths[2] = path
        elif controller in names.split(","):
            paths[1] = path
    for line in _text(Path(root, "proc/self/mountinfo")).splitlines():
        before, _, after = line.partition(" - ")
        mount, kind = before.split(), after.split()
        if len(mount) < 5 or len(kind) < 3:
            continue
        version = {"cgroup2": 2, "cgroup": 1}.get(kind[0])
        if version not in paths or (version == 1 and controller not in kind[2].split(",")):
            continue
        top = Path(root, _unescaped(mount[4]).lstrip("/"))
        try:
            below = PurePosixPath(paths[version]).relative_to(_unescaped(mount[3]))
        except ValueError:  # the path is one of outside the container, which sees its group as the root
            below = PurePosixPath()
        if ".." in below.parts or not (top / below).is_dir():
            below = PurePosixPath()
        for part in (below, *below.parents):
            yield version, top / part


def _unescaped(path: str) -> str:
    """A path of mountinfo, which has spaces as \\040."""
    return path.replace("\\040", " ").replace("\\134", "\\")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    """The number in a file; None if it holds "max", or none."""
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _fields(path: Path) -> dict[str, int]:
    """The lines "name number" of a file."""
    pairs = (line.split() for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
