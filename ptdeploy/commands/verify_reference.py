"""What verify holds an engine against: what PEFT computes, what is stored, the logits of data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ptdeploy.bundle import Bundle, Manifest
from ptdeploy.commands.request import VerifyRequest
from ptdeploy.errors import BaseModelError, CheckpointError, InputError
from ptdeploy.parity.cases import AskedRow
from ptdeploy.parity.data import DataRow
from ptdeploy.parity.reference import Reference, ReferenceRow
from ptdeploy.parity.reference.store import load_reference
from ptdeploy.progress import Progress
from ptdeploy.runtime import Engine

if TYPE_CHECKING:
    from ptdeploy.parity.quality import EvaluationText
    from ptdeploy.parity.reference.peft import PeftSource
    from ptdeploy.source.base import BaseModel
    from ptdeploy.source.checkpoint import Checkpoint
    from ptdeploy.source.tokenizer_choice import ChosenTokenizer


_SAME = "Pass the checkpoint that the bundle was compiled from, and its base model with --base."


def read_same(
    request: VerifyRequest, bundle: Bundle, name: str | None
) -> tuple[Checkpoint, BaseModel]:
    """The checkpoint asked for and its base model, to be held against the bundle's prompt `name`.

    No weight of the base is read. Whether the weights are the same is for parity to say.
    Raises BaseModelError or CheckpointError if it is of another model or of other classes, whose
    logits no engine of this one could give.
    """
    from ptdeploy.source.base import resolve_base
    from ptdeploy.source.checkpoint import read_checkpoint

    assert request.checkpoint is not None, "checked before"
    assert name is not None, "checked before"
    where, info = f"--checkpoint {request.checkpoint}", bundle.manifest.prompts[name]
    checkpoint = read_checkpoint(
        request.checkpoint, request.adapter, bundle.manifest.task, task_id=info.source.task_id
    )
    base = resolve_base(checkpoint, request.base)
    _check_same_model(where, base, bundle.manifest)
    if info.labels and len(info.labels) != base.num_labels:
        raise CheckpointError(
            f"{where}: its head has {base.num_labels} classes, and that of the bundle's prompt "
            f"{name!r} has {len(info.labels)}.",
            _SAME,
        )
    return checkpoint, base


def _check_same_model(where: str, base: BaseModel, manifest: Manifest) -> None:
    """Raises BaseModelError if a base model takes other token ids than the bundle's, or fewer."""
    limits, own = manifest.limits, manifest.base
    kind, wanted = base.config.model_type, own.architecture
    for found, of_bundle, same in (
        (f"of kind {kind}", f"of kind {wanted}", kind == wanted),
        (
            f"vocabulary {base.vocab_size}",
            f"vocabulary {limits.vocab_size}",
            base.vocab_size == limits.vocab_size,
        ),
        (
            f"{base.type_vocab_size} segments",
            f"{limits.type_vocab_size} segments",
            base.type_vocab_size == limits.type_vocab_size,
        ),
        (
            f"{base.max_positions} positions",
            f"at least {limits.max_context} positions",
            base.max_positions >= limits.max_context,
        ),
    ):
        if not same:
            raise BaseModelError(
                f"{where}: its base model ({found}) is not the bundle's, {own.name} ({of_bundle}).",
                _SAME,
            )


def tokenizer_to_compare(
    peft: PeftSource, engine: Engine, asked: str | None
) -> ChosenTokenizer | None:
    """The tokenizer that the bundle's is held against; None if only what is stored can tell.

    Raises InputError if one was asked for and the bundle has none.
    """
    from ptdeploy.source.tokenizer_choice import choose_tokenizer

    if engine.tokenizer is None:
        if asked is not None:
            raise InputError(
                f"--tokenizer {asked}: {engine.bundle.path} has no tokenizer.",
                "Leave --tokenizer out.",
            )
        return None
    info = engine.manifest.tokenizer
    if asked is None and info is not None and info.origin == "given":
        return None
    chosen = choose_tokenizer(peft.checkpoint, peft.base, asked)
    return chosen if chosen.tokenizer is not None else None


def computed_reference(
    peft: PeftSource,
    chosen: ChosenTokenizer | None,
    engine: Engine,
    given: Sequence[DataRow],
    progress: Progress,
) -> Reference:
    """PEFT's logits on PyTorch, for the usual rows and the given data's, with texts' token ids."""
    from ptdeploy.backends import get_backend
    from ptdeploy.parity.cases import comparison, reference_rows
    from ptdeploy.parity.reference.peft import compute_reference
    from ptdeploy.parity.reference.texts import reference_texts, with_texts

    manifest = engine.manifest
    tokenizer = chosen.tokenizer if chosen else None
    texts, padding = reference_texts(tokenizer, engine.limits), manifest.prompt.padding_id
    rows = reference_rows(engine.limits, texts, padding_id=padding)
    rows += [AskedRow(row.ids, "data", row.type_ids) for row in given]
    evaluation = _evaluation(engine.bundle, given) if manifest.quantization else None
    asked = comparison(rows, manifest, get_backend(manifest.target).held_as(engine.bundle))
    computed = compute_reference(
        peft.checkpoint, peft.base, engine.limits, asked, evaluation, peft.model, progress
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
    """The stored reference, and that of the data's rows that bring their own.

    Raises InputError if there is nothing to hold a row of the data against.
    """
    own = [
        ReferenceRow(row.ids, row.logits, "data", row.type_ids)
        for row in given
        if row.logits is not None
    ]
    for number, row in enumerate(given, 1):
        known = (row.logits, row.labels, row.values, row.wanted_ids)
        if all(one is None for one in known):
            raise InputError(
                f"--data: row {number} has no label, and there is no reference for it.",
                "Pass the checkpoint with --checkpoint, to compare with PEFT on your data.",
            )
    return reference.with_data(own, max_batch) if own else reference


def _evaluation(bundle: Bundle, given: Sequence[DataRow]) -> EvaluationText:
    """What quantized weights are evaluated on: what is stored, and the user's data beside it.

    Never the data alone: a few rows of it would take the place of hundreds of texts, and the
    bounds are of shares.
    """
    from ptdeploy.parity.quality import EvaluationText

    stored = load_reference(bundle)
    rows = [AskedRow(row.ids, "text", row.type_ids) for row in stored.evaluation]
    own = [AskedRow(row.ids, "data", row.type_ids) for row in given if row.ids.size > 1]
    source = f"{stored.evaluated_on} and the given data" if own else stored.evaluated_on
    return EvaluationText((*rows, *own), source)
