"""Class names given by the user: PEFT adapters do not keep them."""

from __future__ import annotations

from pathlib import Path

from ptdeploy.errors import InputError


def read_labels(source: str) -> tuple[str, ...]:
    """Read class names from a file with one a line, or from a comma-separated list.

    Raises InputError if a name is empty or stands twice.
    """
    # A list is told from a file by its commas: it may be longer than any file name.
    path = None if "," in source else Path(source)
    try:
        names = (
            path.read_text("utf-8").splitlines() if path and path.is_file() else source.split(",")
        )
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--labels {source}: cannot be read ({error}).") from None
    labels = tuple(name.strip() for name in names if name.strip())
    if not labels or len(set(labels)) != len(labels):
        raise InputError(
            f"--labels {source}: needs one distinct name for each class.",
            "Give them in the order of the class indices: --labels negative,positive",
        )
    return labels
