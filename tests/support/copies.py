"""Models of PEFT with modules that are trained in a copy beside the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from support import kinds


def train_copies(folder: Path, base: Any, task: str, kind: str, modules: Sequence[str]) -> Any:
    """Save the adapter and the state dict of a model with those modules trained; gives it."""
    told = kinds.KINDS[kind](base, task_type=task, num_virtual_tokens=5)
    told.modules_to_save = list(modules) or None
    trained = peft.get_peft_model(base, told).eval()
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if ".modules_to_save." in name:
                parameter += 0.1 * torch.randn_like(parameter)
    trained.save_pretrained(folder / "adapter")
    torch.save(trained.state_dict(), folder / "full.pt")
    return trained
