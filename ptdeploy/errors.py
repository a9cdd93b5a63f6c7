"""One class per kind of blame; each says what is wrong, where, and how to fix it."""

from __future__ import annotations

from collections.abc import Callable


class PtdeployError(Exception):
    """Base of every error that ptdeploy raises on purpose.

    `exit_code` is what the command line exits with: 1 parity mismatch or a bound missed, 2 bad
    input or an engine that fails on good input, 3 target or enough memory not available here.
    """

    exit_code = 2

    def __init__(self, problem: str, fix: str = "") -> None:
        self._say(problem, fix)

    def reword(self, change: Callable[[str], str]) -> None:
        """Have it name what was asked for as the door has it that it came through."""
        self._say(change(self.problem), change(self.fix))

    def _say(self, problem: str, fix: str) -> None:
        self.problem, self.fix = problem, fix
        self.args = (f"{problem}\n{fix}" if fix else problem,)

    def __reduce__(self) -> tuple[type[PtdeployError], tuple[str, str]]:
        # A worker process's error is pickled on its way back.
        return type(self), (self.problem, self.fix)


class CheckpointError(PtdeployError):
    """The checkpoint is missing, broken, or of a kind that ptdeploy does not compile."""


class BaseModelError(PtdeployError):
    """The base model cannot be loaded, or the checkpoint was not trained on it."""


class BundleError(PtdeployError):
    """A bundle is missing, damaged, or made by another version."""


class OutputError(PtdeployError):
    """The bundle cannot be written where it was asked for."""


class InputError(PtdeployError):
    """A request or an option does not fit: too long, empty, of the wrong kind."""


class NoSuchMethod(InputError, AttributeError):
    """A method was asked for that engines of other tasks have: hasattr finds none."""


class ParityError(PtdeployError):
    """The engine does not match PEFT on PyTorch within the thresholds."""

    exit_code = 1


class TargetUnavailable(PtdeployError):
    """The asked target, device or optional dependency is not installed or cannot run here."""

    exit_code = 3


class OutOfMemory(InputError):
    """What was asked for does not fit into the memory of this machine or its device."""

    exit_code = 3


class EngineFault(PtdeployError):
    """The engine failed while it ran, on a request that it should take."""
