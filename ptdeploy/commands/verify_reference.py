"""What verify holds an engine against: what PEFT computes, what is stored, the logits of data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ptdeploy.bundle import Bundle
from ptdeploy.errors import InputError
from ptdeploy.parity.cases import AskedRow
from ptdeploy.parity.data import DataRow
from ptdeploy.parity.reference import Reference, ReferenceRow
from ptdeploy.parity.reference.store import load_reference
from ptdeploy.runtime import Engine

if TYPE_CHECKING:
    from ptdeploy.parity.quality import EvaluationText
    from ptdeploy.parity.reference.peft import PeftSource
    from ptdeploy.source.tokenizer_choice import ChosenTokenizer


def tokenizer_to_compare(
    peft: PeftSource, engine: Engine, asked: str | None
) -> ChosenTokenizer | None:
    """The tokenizer that the bundle's is held against; None if only what is stored can tell.

    Raises InputError if one was asked for and the bundle has none.
    """
    from ptdeploy.source.tokenizer_choice import choose_tokenizer

    if engine.tokenizer is None:
        if asked is not None:
            raise InputError(f"--tokenizer {asked}: {engine.bundle.path} has no tokenizer.")
        return None
    info = engine.manifest.tokenizer
    if asked is None and info is not None and info.origin == "given":
        return None
    chosen = choose_tokenizer(peft.checkpoint, peft.base, asked)
    return chosen if chosen.tokenizer is not None else None


def computed_reference(
    peft: PeftSource, chosen: ChosenTokenizer | None, engine: Engine, given: Sequence[DataRow]
) -> Reference:
    """PEFT's logits on PyTorch, for the usual rows and the given data's, with texts' token ids."""
    from ptdeploy.backends import get_backend
    from ptdeploy.parity.cases import comparison, reference_rows
    from ptdeploy.parity.reference.peft import compute_reference
    from ptdeploy.parity.reference.texts import reference_texts, with_texts

    manifest = engine.manifest
    tokenizer = chosen.tokenizer if chosen else None
    rows = reference_rows(engine.limits, reference_texts(tokenizer, engine.limits))
    rows += [AskedRow(row.ids, "data", row.type_ids) for row in given]
    evaluation = _evaluation(engine.bundle, given) if manifest.quantization else None
    asked = comparison(rows, manifest, get_backend(manifest.target).held_as(engine.bundle))
    computed = compute_reference(
        peft.checkpoint, peft.base, engine.limits, asked, evaluation, peft.model
    )
    if chosen is not None:
        return with_texts(computed, chosen, manifest.task)
    if engine.tokenizer is None:
        return computed
    stored = load_reference(engine.bundle)
    return replace(
        computed,
        texts=stored.texts,
        text_ids=stored.text_ids,
        pairs=stored.pairs,
        pair_ids=stored.pair_ids,
        pair_type_ids=stored.pair_type_ids,
    )


def with_own_logits(
    reference: Reference, given: Sequence[DataRow], max_batch: int | None
) -> Reference:
    """The stored reference and the data's, where its rows bring their own.

    Raises InputError if a row of the data has neither logits nor a label.
    """
    own = [
        ReferenceRow(row.ids, row.logits, "data", row.type_ids)
        for row in given
        if row.logits is not None
    ]
    if own and len(own) == len(given):
        return reference.with_data(own, max_batch)
    for number, row in enumerate(given, 1):
        labelled = row.labels is not None or row.values is not None
        if not labelled and row.wanted_ids is None:
            raise InputError(
                f"--data: row {number} has no label, and there is no reference for it.",
                "Pass the checkpoint with --checkpoint, to compare with PEFT on your data.",
            )
    return reference


def _evaluation(bundle: Bundle, given: Sequence[DataRow]) -> EvaluationText:
    """What quantized weights are evaluated on: the user's data, or else what is stored."""
    from ptdeploy.parity.quality import EvaluationText

    rows = tuple(AskedRow(row.ids, "data", row.type_ids) for row in given if row.ids.size > 1)
    if rows:
        return EvaluationText(rows, "the given data")
    stored = load_reference(bundle)
    asked = (AskedRow(row.ids, "text", row.type_ids) for row in stored.evaluation)
    return EvaluationText(tuple(asked), stored.evaluated_on)
