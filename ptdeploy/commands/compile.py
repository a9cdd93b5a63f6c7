"""compile(): the stages in a line, one data type between each two."""

from __future__ import annotations

import gc

from ptdeploy.arguments import checked, having, instance
from ptdeploy.bundle import Bundle, stage_bundle
from ptdeploy.commands.calibrate import calibrate
from ptdeploy.commands.draft import finish, prove
from ptdeploy.commands.plan import make_plan
from ptdeploy.commands.request import CompileRequest
from ptdeploy.commands.stages import build, freeze, optimise, read, refer, trace
from ptdeploy.progress import Progress


@checked(request=instance(CompileRequest), progress=having("stage", "note", "within"))
def compile_checkpoint(request: CompileRequest, progress: Progress) -> Bundle:
    """See ptdeploy.compile."""
    plan = make_plan(request)
    source = read(plan, progress)
    plan = plan.of_kind(source.base.kind, source.meaning.head)
    frozen = freeze(plan, source, progress)
    traced = calibrate(plan, trace(plan, frozen, progress), progress)
    traced = optimise(plan, traced, progress)
    with stage_bundle(plan.destination) as folder:
        draft = build(plan, traced, folder, progress)
        # The reference loads the model a second time, its own way; two at once would be one too
        # many for a large model.
        del frozen, traced
        gc.collect()
        draft = refer(plan, source, draft, progress)
        return finish(prove(draft, progress), plan.destination, progress)
