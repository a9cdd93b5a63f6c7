"""What compile and rebuild say of a new bundle's parity."""

from __future__ import annotations

from ptdeploy.bundle import Manifest, PromptInfo
from ptdeploy.printable import printable_fields


def parity_lines(manifest: Manifest) -> str:
    """Of the default prompt, and how far the others are from their references at most."""
    prompt = manifest.prompt
    lines = prompt_parity_lines(printable_fields(prompt), bool(manifest.quantization))
    others = [one for one in manifest.prompts.values() if one is not prompt]
    found = [one.parity or one.graph_parity for one in others]
    if farthest := max((one.max_abs for one in found if one is not None), default=None):
        which = "prompt" if len(others) == 1 else f"{len(others)} prompts"
        lines += f"          the other {which}: max abs {farthest:.2g} or less\n"
    return lines


def prompt_parity_lines(prompt: PromptInfo, quantized: bool) -> str:
    """Of a prompt whose strings are printable, over an engine with or without quantized weights."""
    from ptdeploy.commands.inspect import agreement_words
    from ptdeploy.parity.checks import ratio_words

    lines = ""
    for found, of in ((prompt.parity, ""), (prompt.graph_parity, "of the engine's graph: ")):
        if found is None or (lines and of):
            continue
        lines += (
            f"parity    {of}max abs {found.max_abs:.2g} over {found.cases} cases"
            f"{agreement_words(prompt.head, quantized, found.top1_agreement)}"
            f"{ratio_words(found.perplexity_ratio)}\n"
            f"          against {found.reference}\n"
        )
    if prompt.parity is None:
        lines += "          of the engine: PENDING, it cannot run here\n"
    return lines
