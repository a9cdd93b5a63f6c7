"""The names in a manifest: its graph's, its prompts', and whose each file is.

The C++ library has the same rules, in the same order and the same words (bundle.cc).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ptdeploy.bundle.schema import MODEL, Manifest, Role, is_prompt_name

_SHOWN = 20
OF_GRAPH: tuple[Role, ...] = ("model", "weights", "engine", "engine_info")
OF_PROMPT: tuple[Role, ...] = ("prompt", "reference", "parity", "graph_parity")


def misnamed(manifest: Manifest) -> Iterator[str]:
    """What is wrong with the names, so that nobody could ask for the graph or the default prompt.

    A prompt's name is a folder's too, so this comes before anything is done with it.
    """
    if list(manifest.graphs) != [MODEL]:
        yield f"graphs must have one, {MODEL!r}"
    if not all(map(is_prompt_name, manifest.prompts)):
        yield "prompts has a name that no prompt can have"
    if manifest.default_prompt not in (None, *manifest.prompts):
        yield "default_prompt is not the name of a prompt"
    for index, entry in enumerate(manifest.files):
        if entry.role in OF_GRAPH:
            if entry.of not in manifest.graphs:
                yield f"files[{index}].of is not the name of a graph"
        elif entry.role in OF_PROMPT:
            # What shows of the base model alone is no prompt's.
            alone = entry.of is None and entry.role != "prompt"
            if not alone and entry.of not in manifest.prompts:
                yield f"files[{index}].of is not the name of a prompt"
        elif entry.of is not None:
            yield f"files[{index}].of must be null"


def owner(role: Role, manifest: Manifest) -> str | None:
    """The `of` of the file with a role that is used where no prompt is named."""
    if role in OF_GRAPH:
        return MODEL
    return manifest.default_prompt if role in OF_PROMPT else None


def in_words(names: Iterable[str]) -> str:
    """Prompts' names for an error or a note, the first of them where they are many."""
    every = sorted(names)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(map(repr, every[:_SHOWN])) + more if every else "none"
