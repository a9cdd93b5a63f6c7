"""Class names given by the user: PEFT adapters do not keep them."""

from __future__ import annotations

from pathlib import Path

from ptdeploy.errors import InputError
from ptdeploy.printable import printable
from ptdeploy.text_files import argument_text, read_lines

_FIX = "Give them in the order of the class indices: --labels negative,positive"


def read_labels(source: str) -> tuple[str, ...]:
    """Read class names from a file with one a line, or from a comma-separated list.

    Raises InputError if a name is empty, stands twice or holds a control character.
    """
    if _is_file(source):
        names, place = read_lines(source, "--labels"), "line"
    else:
        names, place = argument_text(source).split(","), "name"
        if len(names) == 1 and (Path(source).suffix == ".txt" or Path(source).name != source):
            raise InputError(f"--labels {source}: no such file.", _FIX)
    labels = [name.strip() for name in names]
    while labels and not labels[-1]:
        labels.pop()
    for number, label in enumerate(labels, 1):
        # Names go by their place: leaving an empty one out would shift all after it.
        if not label:
            raise InputError(f"--labels {source}: {place} {number} is empty.", _FIX)
        if label != printable(label):
            raise InputError(
                f"--labels {source}: {place} {number} holds a control character ({label!r}).", _FIX
            )
        if label in labels[: number - 1]:
            raise InputError(
                f"--labels {source}: {label!r} stands twice; each class needs a distinct name.",
                _FIX,
            )
    if not labels:
        raise InputError(f"--labels {source}: needs one distinct name for each class.", _FIX)
    return tuple(labels)


def _is_file(source: str) -> bool:
    try:
        return Path(source).is_file()
    except (OSError, ValueError):  # a list may be longer than any file name
        return False
