"""The memory, CPUs and disk that this process may use; a container or a shell may allow less than the machine has.

Linux limits groups of processes (cgroups, docs.kernel.org/admin-guide/cgroup-v1 and cgroup-v2). Groups are nested, and
the smallest limit on the way up to the root counts. /proc/self/cgroup names the groups that a process is in, and
/proc/self/mountinfo the folders of their files. A container may see its own group as the root, or by a path that exists
only outside of it. Tests pass a `root` other than "/".
"""

import math
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import psutil

from gpt.errors import UserError
from gpt.system.console import size

# Keys of memory.stat for memory that the kernel frees when a process needs it. In v1, "total" includes child groups.
_RECLAIMABLE = {
    1: ("total_active_file", "total_inactive_file"),
    2: ("active_file", "inactive_file", "slab_reclaimable"),
}


def require_memory(work: str, needed: int, free: int, advice: str) -> None:
    """Raises UserError if `work` needs more bytes than are `free`.

    Example:
        >>> require_memory("exporting", 2_000_000, 500_000, "close other programs")
        UserError: exporting needs 2 MiB of memory, but 488 KiB is free: close other programs
    """
    if needed > free:
        raise UserError(f"{work} needs {size(needed)} of memory, but {size(free)} is free: {advice}")


def free_memory(root: str = "/") -> int:
    """Bytes that this process could still take, by the machine, by each of its cgroups and by `ulimit -v`."""
    available: int = psutil.virtual_memory().available
    return max(0, min([available, *_group_memory(root), *_address_space()]))


def cpus(root: str = "/") -> int:
    """Number of CPUs that this process may use at once: those it may run on, or fewer if a cgroup has a lower quota.

    A quota of 1.5 CPUs counts as 2, and a quota of half a CPU as 1.
    """
    return max(1, min([len(usable_cpus()), *(math.ceil(quota) for quota in _group_cpus(root))]))


def usable_cpus() -> list[int]:
    """The numbers of the CPUs that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def free_disk(path: Path) -> int | None:
    """Bytes that can still be written at `path`, which need not exist yet; None if the system does not tell."""
    path = Path(path).absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _group_memory(root: str) -> Iterator[int]:
    """Bytes left in each group that has a limit. Page cache counts as free, because the kernel frees it when needed."""
    for version, folder in _groups(root, "memory"):
        if version == 2:
            names, usage = ["memory.max", "memory.high"], "memory.current"
        else:
            names, usage = ["memory.limit_in_bytes"], "memory.usage_in_bytes"
        limits = [limit for name in names if (limit := _number(folder / name)) is not None]
        used = _number(folder / usage)
        if limits and used is not None:
            stat = _fields(folder / "memory.stat")
            yield min(limits) - used + sum(stat.get(name, 0) for name in _RECLAIMABLE[version])


def _group_cpus(root: str) -> Iterator[float]:
    """The quota of each group that has one, in CPUs."""
    for version, folder in _groups(root, "cpu"):
        if version == 2:
            quota, _, period = _text(folder / "cpu.max").partition(" ")  # "150000 100000", or "max 100000"
        else:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        with suppress(ValueError, ZeroDivisionError):  # "max", "-1" or a missing file: no limit
            if int(quota) > 0:
                yield int(quota) / int(period)


def _address_space() -> Iterator[int]:
    """Bytes left of `ulimit -v`, if that is set."""
    if sys.platform != "win32":  # which has no such limit
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            yield limit - psutil.Process().memory_info().vms


def _groups(root: str, controller: str) -> Iterator[tuple[int, Path]]:
    """Version and folder of each group that limits this process by `controller`, from its own group up to the root.

    Example: in the group /a of version 2, `controller` "memory" gives (2, /sys/fs/cgroup/a) and (2, /sys/fs/cgroup).
    """
    paths = _group_paths(root, controller)
    for version, part_of_tree, mount_point in _mounted_trees(root, controller):
        if version not in paths:
            continue
        top = Path(root, mount_point.lstrip("/"))
        try:
            below = PurePosixPath(paths[version]).relative_to(part_of_tree)
        except ValueError:  # the path is valid outside the container only, which sees its group as the root
            below = PurePosixPath()
        if ".." in below.parts or not (top / below).is_dir():
            below = PurePosixPath()
        for part in (below, *below.parents):
            yield version, top / part


def _group_paths(root: str, controller: str) -> dict[int, str]:
    """The path of this process's group in the tree of each version.

    A line of /proc/self/cgroup is "0::/a" (version 2) or "4:cpu,cpuacct:/a" (version 1).
    """
    paths = {}
    for line in _text(Path(root, "proc/self/cgroup")).splitlines():
        number, names, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not names:
            paths[2] = path
        elif controller in names.split(","):
            paths[1] = path
    return paths


def _mounted_trees(root: str, controller: str) -> Iterator[tuple[int, str, str]]:
    """Version, root and mount point of each mounted tree of groups, or of a part of it, that `controller` belongs to.

    A line of /proc/self/mountinfo is "30 1 0:28 ROOT MOUNTPOINT OPTIONS … - TYPE DEVICE OPTIONS".
    """
    for line in _text(Path(root, "proc/self/mountinfo")).splitlines():
        before, _, after = line.partition(" - ")
        mount, kind = before.split(), after.split()
        if len(mount) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2" or (kind[0] == "cgroup" and controller in kind[2].split(",")):
            yield 2 if kind[0] == "cgroup2" else 1, _unescaped(mount[3]), _unescaped(mount[4])


def _unescaped(path: str) -> str:
    """A path from mountinfo, which writes a space as \\040."""
    return path.replace("\\040", " ").replace("\\134", "\\")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    """The number in a file; None if there is no file or no number in it, such as "max"."""
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _fields(path: Path) -> dict[str, int]:
    """The numbers in a file of lines "name number", by name."""
    pairs = (line.split() for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
