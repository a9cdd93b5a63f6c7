"""What verify holds an engine against: what PEFT computes, what is stored, the logits of data."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from ptdeploy.bundle import Bundle, Manifest
from ptdeploy.commands.request import VerifyRequest
from ptdeploy.errors import BaseModelError, CheckpointError, InputError
from ptdeploy.parity.cases import AskedRow
from ptdeploy.parity.data import DataRow
from ptdeploy.parity.reference import Reference, ReferenceRow
from ptdeploy.parity.reference.store import load_reference
from ptdeploy.printable import number_of
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
    Raises BaseModelError or CheckpointError if it is of another task, of another model or of other
    classes, whose logits no engine of this one could give.
    """
    from ptdeploy.source.base import resolve_base

    assert name is not None, "checked before"
    where, info = f"--checkpoint {request.checkpoint}", bundle.manifest.prompts[name]
    checkpoint = _read(where, request, bundle.manifest, name)
    base = resolve_base(checkpoint, request.base)
    _check_same_model(where, base, bundle.manifest)
    if info.labels and len(info.labels) != base.num_labels:
        raise CheckpointError(
            f"{where}: its head has {base.num_labels} classes, and that of the bundle's prompt "
            f"{name!r} has {len(info.labels)}.",
            _SAME,
        )
    return checkpoint, base


def _read(where: str, request: VerifyRequest, manifest: Manifest, name: str) -> Checkpoint:
    """The checkpoint asked for, read for the bundle's task.

    compile may have been told that task over the one that the checkpoint names: what it read then
    is taken as it was. Raises CheckpointError if any other names another task, or is a multitask
    prompt where the bundle's prompt `name` is none.
    """
    from ptdeploy.source.checkpoint import NoTaskNamed, read_any_task, read_checkpoint

    assert request.checkpoint is not None, "checked before"
    path, adapter, source = request.checkpoint, request.adapter, manifest.prompts[name].source
    # Read as what it is not, the checkpoint would be blamed for what it lacks for that.
    with suppress(CheckpointError):
        checkpoint = read_checkpoint(path, adapter, manifest.task, task_id=source.task_id)
        if dict(checkpoint.files) == source.files:
            return checkpoint
    try:
        own = read_any_task(path, adapter)
    except NoTaskNamed:
        own = read_any_task(path, adapter, manifest.task)
    if own.task != manifest.task:
        raise CheckpointError(
            f"{where}: was trained for {own.task.value}, and the bundle is for "
            f"{manifest.task.value}.",
            _SAME,
        )
    _check_same_tasks(where, own, name, source.task_id)
    if own.task_id == source.task_id:
        return own
    return read_checkpoint(path, adapter, manifest.task, task_id=source.task_id)


def _check_same_tasks(where: str, own: Checkpoint, name: str, task_id: int | None) -> None:
    """Raises CheckpointError if it has no prompt of a multitask prompt's task, or several."""
    found = wanted = "is no multitask prompt"
    if own.task_id is not None:
        found = f"is a multitask prompt of {number_of(own.num_tasks, 'task')}"
    if task_id is not None:
        wanted = f"is of a multitask prompt's task {task_id}"
    if (own.task_id is None) != (task_id is None) or (task_id or 0) >= own.num_tasks:
        raise CheckpointError(
            f"{where}: {found}, and the bundle's prompt {name!r} {wanted}.", _SAME
        )


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
    reference: Reference, given: Sequence[DataRow], manifest: Manifest
) -> Reference:
    """The stored reference, and that of the data's rows that bring their own.

    Raises InputError if there is nothing to hold a row of the data against.
    """
    own = [
        ReferenceRow(row.ids, row.logits, "data", row.type_ids)
        for row in given
        if row.logits is not None
    ]
    wanted = "label" if manifest.prompt.labels else "logits"
    for number, row in enumerate(given, 1):
        known = (row.logits, row.labels, row.values, row.wanted_ids)
        if all(one is None for one in known):
            raise InputError(
                f"--data: row {number} has no {wanted}, and there is no reference for it.",
                "Pass the checkpoint with --checkpoint, to compare with PEFT on your data.",
            )
    return reference.with_data(own, manifest.limits.max_batch) if own else reference


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
