"""The tasks, by the names PEFT gives them, and the tensors that cross a program's border."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

Activations = Literal["float32", "float16", "bfloat16"]
# What attention over a KV buffer is traced as: ONNX Runtime's own operators, or ONNX's alone.
Operators = Literal["onnxruntime", "standard"]
# The operator that gives products their quantized weights.
QuantizedReader = Literal["MatMulNBits", "DequantizeLinear"]


# What a classifier's logits are: scores of classes of which one is true, scores of classes each
# true or not, or numbers that are the answer.
Head = Literal["softmax", "sigmoid", "regression"]


class Task(StrEnum):
    """What a model is for. The values are PEFT's `TaskType` names."""

    SEQ_CLS = "SEQ_CLS"
    TOKEN_CLS = "TOKEN_CLS"
    CAUSAL_LM = "CAUSAL_LM"


# The task of formats that hold prompts of models that write, and of no others.
WRITING = Task.CAUSAL_LM


# What a tensor is to whoever runs the graph. ids, mask, segments: (batch, sequence). lengths: of
# each row's past or prefix. positions: those to give logits for. offsets: (sequence,), each token's
# place behind the past, from 0 on; at another 0 another row begins. past, present: the KV buffer.
# logits. What belongs to prompts: table (virtual tokens), prefix (prefix KV), head (parameters of
# the trained head), prompt (which of the prompts a row has).
TensorRole = Literal[
    "ids",
    "mask",
    "segments",
    "lengths",
    "positions",
    "offsets",
    "past",
    "present",
    "logits",
    "table",
    "prefix",
    "head",
    "prompt",
]


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output: name, role, element type, shape with symbolic axes, and meaning."""

    name: str
    role: TensorRole
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str
