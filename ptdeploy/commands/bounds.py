"""Bounds of a user's own on what a model does not give, in compile's options and verify's file."""

from __future__ import annotations

from collections.abc import Callable, Collection

from ptdeploy.errors import InputError


def refuse_logits_error(
    writes: bool, heads: Collection[str], named: Callable[[str], str], where: str = ""
) -> None:
    """Raises InputError unless a bound on the logits error is of such a model.

    `named` says what a bound is called to who gave it, in `where`.
    """
    bound = f"{where}{named('max_logits_error')}"
    if writes:
        raise InputError(
            f"{bound} is of a classifier, and this model writes.",
            f"Leave it out, or bound its perplexity with {named('max_perplexity_ratio')}.",
        )
    if "softmax" not in heads:
        raise InputError(
            f"{bound} is of a classifier that chooses one class, and the head here is a "
            f"{' and a '.join(sorted(heads))}.",
            f"Leave it out, or bound the explained variance with {named('min_agreement')}.",
        )
