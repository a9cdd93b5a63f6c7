"""Two prompts of a bundle whose files stand in each other's place, though every hash fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.damage import edit


def exchange_prompts(bundle: Path, one: str, other: str) -> None:
    """Have each prompt's name give the other's tensors."""
    files = [bundle / "prompts" / name / "prompt.safetensors" for name in (one, other)]
    first, second = (file.read_bytes() for file in files)
    files[0].write_bytes(second)
    files[1].write_bytes(first)

    def change(manifest: dict[str, Any]) -> None:
        prompts = manifest["prompts"]
        own, others = prompts[one], prompts[other]
        own["sha256"], others["sha256"] = others["sha256"], own["sha256"]
        listed = {entry["of"]: entry for entry in manifest["files"] if entry["role"] == "prompt"}
        for what in ("size", "sha256"):
            mine, theirs = listed[one][what], listed[other][what]
            listed[one][what], listed[other][what] = theirs, mine

    edit(bundle, change)
