"""Whether ONNX Runtime's GroupQueryAttention takes an attention: one node of it, run."""

from __future__ import annotations

from typing import Any

import numpy as np

from ptdeploy.backends.ort.errors import reason
from ptdeploy.backends.ort.open import providers
from ptdeploy.backends.telemetry import import_onnxruntime
from ptdeploy.bundle.task import Activations
from ptdeploy.memory import ran_out_of_memory
from ptdeploy.targets import Attention

OPERATOR = "GroupQueryAttention"
# Of a text's tokens those that the buffer holds already, the new ones, and the buffer's slots.
_PAST, _NEW, _SLOTS = 2, 3, 8


def try_attention(options: Any, device: str, activations: Activations, attention: Attention) -> str:
    """Run one such node behind a prefix; gives why it failed, in ONNX Runtime's words, or "".

    The operator's limits are nowhere to be asked for, and differ between devices and versions.
    """
    onnxruntime = import_onnxruntime()

    # On a GPU: a node that its provider does not have would be run by the CPU, unseen.
    if device != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # What it refuses is said in our words.
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            _one_node(activations, attention),
            options,
            providers=providers(device),
            enable_fallback=False,
        )
        session.run(None, _feed(activations, attention))
    except Exception as error:  # onnxruntime's own errors share no public base class
        if ran_out_of_memory(error):
            raise
        words = reason(error).removeprefix(f"{OPERATOR}: ")
        of = f"{attention.heads} heads of {attention.head_dim}"
        if attention.kv_heads != attention.heads:
            of += f" over {attention.kv_heads} of keys"
        return f"{OPERATOR} does not take {of} ({words})"
    return ""


def _one_node(activations: Activations, attention: Attention) -> bytes:
    from onnx import TensorProto, helper

    dtype = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[activations]
    heads, kv_heads, size = attention.heads, attention.kv_heads, attention.head_dim
    buffer = [1, kv_heads, _SLOTS, size]
    inputs = {
        "query": (dtype, [1, _NEW, heads * size]),
        "key": (dtype, [1, _NEW, kv_heads * size]),
        "value": (dtype, [1, _NEW, kv_heads * size]),
        "past_key": (dtype, buffer),
        "past_value": (dtype, buffer),
        "last_slot": (TensorProto.INT32, [1]),
        "filled": (TensorProto.INT32, []),
    }
    names = list(inputs)
    if attention.sinks:
        inputs["sinks"] = (dtype, [heads])
        names += ["", "", "", "", "sinks"]
    attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": kv_heads}
    if attention.window:
        attributes["local_window_size"] = attention.window
    if attention.softcap:
        attributes["softcap"] = attention.softcap
    outputs = ["output", "present_key", "present_value"]
    node = helper.make_node(OPERATOR, names, outputs, domain="com.microsoft", **attributes)
    graph = helper.make_graph(
        [node],
        "attention",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    whole: bytes = model.SerializeToString()
    return whole


def _feed(activations: Activations, attention: Attention) -> dict[str, Any]:
    dtype = np.dtype(activations)
    size, kv_heads = attention.head_dim, attention.kv_heads
    ones = {
        "query": (1, _NEW, attention.heads * size),
        "key": (1, _NEW, kv_heads * size),
        "value": (1, _NEW, kv_heads * size),
        "past_key": (1, kv_heads, _SLOTS, size),
        "past_value": (1, kv_heads, _SLOTS, size),
    }
    if attention.sinks:
        ones["sinks"] = (attention.heads,)
    feed: dict[str, Any] = {name: np.ones(shape, dtype) for name, shape in ones.items()}
    feed["last_slot"] = np.array([_PAST + _NEW - 1], np.int32)
    feed["filled"] = np.array(_PAST + _NEW, np.int32)
    return feed
