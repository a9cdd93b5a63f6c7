"""How much memory this process may still take, before it takes it.

A large buffer of zeros costs nothing until it is touched: then the kernel ends the process, where
a request should have been refused.
"""

from __future__ import annotations

from pathlib import Path

from ptdeploy.errors import OutOfMemory

_CGROUP = Path("/sys/fs/cgroup")
# Not worth asking for.
_SMALL = 1 << 24
# What cgroups of version 1 say where nothing is limited.
_UNLIMITED = 1 << 60


def available_memory() -> int | None:
    """Bytes that are left: the machine's, the control group's and the process's limit, the least.

    None where the system does not say.
    """
    found = [left for left in (_of_machine(), _of_group(), _of_process()) if left is not None]
    return max(0, min(found)) if found else None


def require_memory(needed: int, what: str) -> None:
    """Raises OutOfMemory, naming `what`, if it is more than this process may still take."""
    left = available_memory() if needed > _SMALL else None
    if left is not None and needed > left:
        raise OutOfMemory(
            f"{what} would take {in_words(needed)}, but {in_words(left)} of memory are left.",
            "Send fewer rows at once, or ask for fewer tokens.",
        )


def in_words(size: int) -> str:
    """Bytes as people say them."""
    for unit, words in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB")):
        if size >= unit:
            return f"{size / unit:.1f} {words}"
    return f"{size / 1024:.0f} KiB"


def _of_machine() -> int | None:
    return _field("/proc/meminfo", "MemAvailable")


def _of_group() -> int | None:
    """What the control group leaves; what it holds of files is given back when it is needed."""
    try:
        path = next(
            line.split(":", 2)[2].strip("/\n")
            for line in Path("/proc/self/cgroup").read_text().splitlines()
            if line.startswith("0:") or ":memory:" in line
        )
    except (OSError, StopIteration, IndexError):
        return None
    left = []
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        base = _CGROUP if limit == "memory.max" else _CGROUP / "memory"
        # Within a container its own group is the root.
        folder = base / path
        for place in (folder, *folder.parents):
            most, now = _number(place / limit), _number(place / used)
            if most is not None and now is not None and most < _UNLIMITED:
                files = _field(str(place / "memory.stat"), "inactive_file", 1) or 0
                left.append(most - now + files)
            if place == base:
                break
    return min(left) if left else None


def _of_process() -> int | None:
    """What RLIMIT_AS and RLIMIT_DATA leave."""
    try:
        import resource
    except ImportError:
        return None
    left = []
    for limit, field in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most = resource.getrlimit(limit)[0]
        used = _field("/proc/self/status", field)
        if most != resource.RLIM_INFINITY and used is not None:
            left.append(most - used)
    return min(left) if left else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _field(path: str, name: str, unit: int = 1024) -> int | None:
    """A number of a file that has one name and number on each line."""
    try:
        for line in Path(path).read_text().splitlines():
            words = line.replace(":", " ").split()
            if len(words) > 1 and words[0] == name:
                return int(words[1]) * unit
    except (OSError, ValueError):
        pass
    return None
