"""What an engine is asked when it is not answering anyone: to be timed, or looked into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle import RequestLimits
from ptdeploy.errors import InputError

TOKENS = 32


@dataclass(frozen=True)
class ProbeRequest:
    """What is timed, and in `reset` what must be undone before it can be run again.

    It is of `batch` rows of `tokens` tokens, whatever it does with them.
    """

    name: str
    batch: int
    tokens: int
    run: Callable[[], object]
    reset: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Fed:
    """What one run of an engine was given: rows as one batch, and where one row's tokens lie in it.

    Each row is fed `width` tokens. Of row `row` of `rows` the first `taken` are real: the last
    `taken` tokens of that row. `prefix` virtual tokens stand before its text. The graph computes
    those too (`runs_prefix`), or they were frozen, and PyTorch's positions of them are left out.
    Logits, and what the graph computes for them alone, begin behind the first `skipped` tokens fed.
    """

    feed: Mapping[str, NDArray[Any]]
    row: int
    rows: int
    width: int
    taken: int
    prefix: int
    runs_prefix: bool
    skipped: int = 0


def probe_rows(
    limits: RequestLimits, batch: int, tokens: int | None, most: int, beside: str = "."
) -> NDArray[np.int64]:
    """Random rows to time an engine with, int64 (batch, tokens): as many tokens as told, else 32.

    At most `most` fit: `beside` ends the sentence that says beside what. Raises InputError if more
    are asked for.
    """
    if most < (tokens or 1):
        raise InputError(
            f"--tokens {tokens or 1}: at most {most} fit beside the virtual tokens{beside}"
        )
    return np.random.default_rng(0).integers(
        0, limits.vocab_size, (batch, tokens or min(TOKENS, most))
    )


def rows_in_words(batch: int) -> str:
    return f"{batch} row{'s' if batch > 1 else ''}"
