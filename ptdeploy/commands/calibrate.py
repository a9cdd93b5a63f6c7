"""A stage of compile: what activations are on texts, and which of them a fixed scale suits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from ptdeploy.bundle import stage_bundle
from ptdeploy.commands.plan import Plan, in_floats
from ptdeploy.commands.stages import Traced, build, optimise
from ptdeploy.printable import number_of
from ptdeploy.progress import Progress
from ptdeploy.runtime import open_engine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ptdeploy.commands.draft import Draft
    from ptdeploy.parity.cases import AskedRow
    from ptdeploy.passes.fit_scales import Seen
    from ptdeploy.passes.fixed_scales import FixedScale, Product


@dataclass
class _Group:
    """Products that have one scale: they share what they read, or their matrix."""

    products: list[Product] = field(default_factory=list)

    def reads(self) -> dict[str, None]:
        return {product.given.name or "": None for product in self.products}

    def matrices(self) -> list[NDArray[np.float32]]:
        return [one.matrix for one in {one.of: one for one in self.products}.values()]

    def shares(self, product: Product) -> bool:
        return any(one.given is product.given or one.of == product.of for one in self.products)


def calibrate(plan: Plan, traced: Traced, progress: Progress) -> Traced:
    """Run an engine of floats on the texts of `--calibration`, and fit scales to what it computes.

    It is ONNX Runtime's, on a CPU, whatever the target, and stays out of the bundle. Where there
    are several prompts, texts have them in turn.
    Raises InputError if the texts cannot be encoded.
    """
    from ptdeploy.passes.fit_scales import fit
    from ptdeploy.passes.fixed_scales import products

    if plan.calibration is None:
        return traced
    with progress.stage("calibrate activations"), stage_bundle(plan.destination) as folder:
        quiet, floats = Progress(quiet=True), in_floats(plan)
        found: list[Product] = []
        copy = replace(traced, graph=traced.graph.clone())
        graph = optimise(floats, copy, quiet, lambda model: found.extend(products(model)))
        groups = _groups(found)
        draft = build(floats, graph, folder, quiet)
        rows = _rows(draft, traced, plan.calibration)
        seen = _look(draft, rows, {name for one in groups for name in one.reads()}, progress)
        scales: dict[int, FixedScale | None] = {}
        for group in progress.within(groups, "scales"):
            scale = fit([seen[name] for name in group.reads()], group.matrices())
            scales |= {id(product): scale for product in group.products}
    return _calibrated(traced, found, tuple(scales[id(one)] for one in found), len(rows))


def _calibrated(
    traced: Traced, found: Sequence[Product], scales: tuple[FixedScale | None, ...], rows: int
) -> Traced:
    from ptdeploy.passes.fixed_scales import Calibration

    sizes = {one.of: one.constant.size for one in found}
    fixed = {one.of for one, scale in zip(found, scales, strict=True) if scale is not None}
    share = sum(sizes[one] for one in fixed) / max(1, sum(sizes.values()))
    note = (
        f"activations have fixed scales for {share:.0%} of the weights in products, found on "
        f"{number_of(rows, 'row')} of the calibration text; for the others each token has its own."
    )
    return replace(traced, calibration=Calibration(scales, share), notes=(*traced.notes, note))


def _groups(found: Sequence[Product]) -> list[_Group]:
    groups: list[_Group] = []
    for product in found:
        joined = [one for one in groups if one.shares(product)]
        groups = [one for one in groups if one not in joined]
        groups.append(_Group([*(p for one in joined for p in one.products), product]))
    return groups


def _rows(draft: Draft, traced: Traced, texts: tuple[str, ...]) -> tuple[AskedRow, ...]:
    from ptdeploy.parity.reference.texts import calibration_rows

    source = traced.source
    limits, task = draft.manifest.request_limits, source.checkpoint.task
    tokenizer = source.tokenizer.tokenizer
    return calibration_rows(tokenizer, limits, texts, task)


def _look(
    draft: Draft, rows: Sequence[AskedRow], names: set[str], progress: Progress
) -> dict[str, Seen]:
    """What the values of those names were, in runs of one row each."""
    from ptdeploy.passes.fit_scales import Seen
    from ptdeploy.targets.onnx_model import open_with_inner

    bundle = draft.opened()
    path = bundle.in_folder("model")
    assert path is not None, "its engine is its graph"
    seen = {name: Seen() for name in names}
    run = open_with_inner(path, tuple(names))
    prompts = list(draft.manifest.prompts)
    for index, prompt in enumerate(prompts):
        engine = open_engine(bundle.by_default(prompt))
        # By twos: one to take ranges from, one to try scales on.
        own = [row for number, row in enumerate(rows) if number // 2 % len(prompts) == index]
        for row in progress.within(own, "texts"):
            types = np.zeros_like(row.ids) if row.type_ids is None else row.type_ids
            found = run(engine.feed([row.ids], [types], 0).feed)
            for name, one in seen.items():
                values = found[name]
                one.add(values.reshape(-1, values.shape[-1]), 2 / len(rows))
    return seen
