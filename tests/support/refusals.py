"""What Python refuses, and whether C++ refused it for the same reason."""

from __future__ import annotations

from pathlib import Path

import ptdeploy
from ptdeploy.errors import PtdeployError


def python_refusal(bundle: Path, device: str | None = None) -> PtdeployError | None:
    try:
        ptdeploy.load(bundle, device=device)
    except PtdeployError as error:
        return error
    return None


def same_refusal(theirs: dict[str, str], ours: PtdeployError | None, same_words: bool) -> bool:
    """Whether both refused for one reason, or neither did."""
    if ours is None:
        return theirs == {}
    if isinstance(ours, ptdeploy.TargetUnavailable):  # each names the devices it can run on
        return theirs["error"] == "TargetUnavailable"
    problems = [theirs.get("problem", ""), ours.problem]
    if not same_words:
        problems = [text.split(" (")[0] for text in problems]
    found = {"kind": theirs.get("error"), "fix": theirs.get("fix")}
    return problems[0] == problems[1] and found == {"kind": type(ours).__name__, "fix": ours.fix}
