"""The tasks, by the names PEFT gives them, and the tensors that cross a program's border."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Task(StrEnum):
    """What a model is for. The values are PEFT's `TaskType` names."""

    SEQ_CLS = "SEQ_CLS"
    TOKEN_CLS = "TOKEN_CLS"
    CAUSAL_LM = "CAUSAL_LM"


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output: its name, element type, shape with symbolic axes, and meaning."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str
