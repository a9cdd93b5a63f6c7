"""How many threads an engine has on a CPU, and whether they wait by spinning.

ptdeploy/cpp/src/cores.cc has the same rules.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from ptdeploy.arguments import MOST_THREADS
from ptdeploy.errors import InputError

THREADS, SPIN = "PTDEPLOY_THREADS", "PTDEPLOY_SPIN"


def default_threads() -> int:
    """What `PTDEPLOY_THREADS` says, else as many as there are cores for this process.

    Raises InputError if the variable is no whole number from 1 to 1024.
    """
    given = os.environ.get(THREADS, "").strip()
    if not given:
        return usable_cores()
    # So many digits Python would not even read.
    is_number = given.isascii() and given.isdigit() and len(given) < 10
    if is_number and 1 <= int(given) <= MOST_THREADS:
        return int(given)
    raise InputError(
        f"{THREADS} is {given!r}; it must be a whole number from 1 to {MOST_THREADS}.",
        "Without it an engine has as many threads as there are cores for its process.",
    )


def spin_us() -> int | None:
    """How many microseconds a thread that waits for work keeps its core busy: 50 by default.

    Waking a thread for each operator costs a short request a quarter of its time, and a thread
    that waits long takes its core from a process that has work. 0 with `PTDEPLOY_SPIN=0`; None
    with `PTDEPLOY_SPIN=1`: as long as the engine's own default, also between requests.
    """
    return {None: 50, False: 0, True: None}[switch(SPIN)]


def switch(name: str) -> bool | None:
    """Whether an environment variable is 1, not 0; None if it is not set.

    Raises InputError if it is anything else.
    """
    given = os.environ.get(name, "").strip()
    if given in ("", "0", "1"):
        return given == "1" if given else None
    raise InputError(f"{name} is {given!r}; it must be 0 or 1.")


def usable_cores(proc: Path = Path("/proc"), system: Path = Path("/sys")) -> int:
    """The cores that this process may run on, at most what its cgroups' quotas add up to.

    Two hardware threads of one core count once: they share what products are computed with. A
    quota of part of a core is rounded up.
    """
    cores, quota = len(cpus_of_cores(system)), _quota(proc, system)
    count = cores if quota is None else min(cores, math.ceil(quota))
    return min(max(count, 1), MOST_THREADS)


def cpus_of_cores(system: Path = Path("/sys")) -> list[int]:
    """The first CPU, a hardware thread, of each core that this process may run on, ascending."""
    if hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)
    else:
        allowed = set(range(os.cpu_count() or 1))
    cores: dict[str, int] = {}
    for cpu in sorted(allowed):
        siblings = system / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        cores.setdefault(_text(siblings) or str(cpu), cpu)
    return list(cores.values())


def _quota(proc: Path, system: Path) -> float | None:
    """The smallest quota of this process's cgroups and those around them, in cores."""
    mounts = system / "fs/cgroup"
    found = []
    for line in _text(proc / "self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            places, read = [mounts, mounts / "unified"], _quota_2
        elif "cpu" in controllers.split(","):
            places, read = [mounts / controllers, mounts / "cpu"], _quota_1
        else:
            continue
        # A container sees its own group as the root, whatever the path says; then only that is
        # there.
        parts = [part for part in path.split("/") if part and part != ".."]
        for place in places:
            for depth in range(len(parts) + 1):
                found.append(read(place.joinpath(*parts[:depth])))
    return min((quota for quota in found if quota is not None), default=None)


def _quota_2(folder: Path) -> float | None:
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    return _share(quota, period)


def _quota_1(folder: Path) -> float | None:
    return _share(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))


def _share(quota: str, period: str) -> float | None:
    """Microseconds a period as a number of cores; None without a limit ("max", -1)."""
    if not quota.isdigit() or not period.isdigit() or not int(period) or not int(quota):
        return None
    return int(quota) / int(period)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
