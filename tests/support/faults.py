"""Deliberate faults for a bundle, each what a real mistake would have left in it.

A fault changes the bundle's files and writes their new hashes into the manifest: what is tested is
parity, not the hash check, which would catch every one of them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from safetensors.numpy import load_file, save_file
from support import tiny

# Each model's architecture, task and configuration; biases and norms are random in all of them.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("bert", "SEQ_CLS", {}),
    "distilbert": ("distilbert", "TOKEN_CLS", {}),
    # A trained Qwen2 has an epsilon of 1e-6 and hidden states to match; random ones are larger.
    "qwen2": ("qwen2", "CAUSAL_LM", {"rms_norm_eps": 1e-2}),
    # Its heads are wide enough for attention to turn them by a table.
    "qwen2 wide": ("qwen2", "CAUSAL_LM", {"hidden_size": 64, "rms_norm_eps": 1e-2}),
    "gpt2": ("gpt2", "CAUSAL_LM", {}),
    "gpt2 classes": ("gpt2", "SEQ_CLS", {}),
    "mistral": ("mistral", "CAUSAL_LM", {}),
    "bloom": ("bloom", "CAUSAL_LM", {}),
    "qwen2 int8": ("qwen2", "CAUSAL_LM", {}),
    "qwen2 int4": ("qwen2", "CAUSAL_LM", {}),
}
# Those that are not compiled in fp32.
PRECISIONS = {"qwen2 int8": "int8", "qwen2 int4": "int4"}


class Editor:
    """A bundle's graph, weights, one prompt, tokenizer and manifest, to change and write back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = onnx.load(folder / "model.onnx")
        self.manifest = json.loads((folder / "manifest.json").read_text())
        (entry,) = [one for one in self.manifest["files"] if one["role"] == "prompt"]
        self.prompt_file = folder / entry["path"]
        self.prompt = load_file(self.prompt_file)
        self._names = 0

    @classmethod
    def copy(cls, source: Path, destination: Path) -> Editor:
        shutil.copytree(source, destination)
        return cls(destination)

    def node(self, name: str) -> onnx.NodeProto:
        (found,) = [node for node in self.model.graph.node if node.name == name]
        return found

    def constant(self, node: str, place: int) -> np.ndarray:
        return np.array(numpy_helper.to_array(self._tensor(self.node(node).input[place])))

    def set_constant(self, node: str, place: int, array: np.ndarray) -> None:
        """Give one node a constant of its own: others may share the old one."""
        self.node(node).input[place] = self.add_constant(array)

    def add_constant(self, array: np.ndarray) -> str:
        self._names += 1
        name = f"fault.{self._names}"
        self.model.graph.initializer.append(
            numpy_helper.from_array(np.array(array, order="C"), name)
        )
        return name

    def attribute(self, node: str, name: str, value: Any) -> None:
        one = self.node(node)
        kept = [attribute for attribute in one.attribute if attribute.name != name]
        del one.attribute[:]
        one.attribute.extend(kept)
        if value is not None:
            one.attribute.append(helper.make_attribute(name, value))

    def after(self, node: str, *operators: tuple[str, list[Any], dict[str, Any]]) -> None:
        """Put operators behind a node's first output, in its module; None is what they take."""
        one = self.node(node)
        output, module = one.output[0], node.rpartition("/")[0]
        one.output[0] = current = f"{output}.before"
        index = list(self.model.graph.node).index(one) + 1
        for number, (kind, inputs, attributes) in enumerate(operators):
            last = number == len(operators) - 1
            result = output if last else f"{output}.{number}"
            names = [
                current if given is None else self.add_constant(np.asarray(given))
                for given in inputs
            ]
            added = helper.make_node(
                kind, names, [result], f"{module}/{kind}_fault{number}", **attributes
            )
            self.model.graph.node.insert(index + number, added)
            current = result

    def before(self, node: str, place: int, kind: str, given: Any, name: str = "") -> None:
        """Put one operator before a node's input, with a constant as its second one."""
        one, name = self.node(node), name or f"{node}.before"
        added = helper.make_node(kind, [one.input[place], self.add_constant(given)], [name], name)
        self.model.graph.node.insert(list(self.model.graph.node).index(one), added)
        one.input[place] = name

    def bypass(self, node: str, place: int = 0) -> None:
        """Drop a node: what used it takes its input instead."""
        one = self.node(node)
        self.rewire(one.output[0], one.input[place])

    def rewire(self, old: str, new: str) -> None:
        for user in self.model.graph.node:
            for place, name in enumerate(user.input):
                if name == old:
                    user.input[place] = new

    def write(self) -> None:
        (self.folder / "model.onnx.data").unlink()
        onnx.save(
            self.model,
            self.folder / "model.onnx",
            save_as_external_data=True,
            location="model.onnx.data",
            size_threshold=256,
        )
        save_file(self.prompt, self.prompt_file)
        kept = self.prompt.get("virtual_tokens", self.prompt.get("prefix_kv"))
        assert kept is not None
        tokens = kept.tobytes()
        for prompt in self.manifest["prompts"].values():
            prompt["sha256"] = hashlib.sha256(tokens).hexdigest()
        for entry in self.manifest["files"]:
            content = (self.folder / entry["path"]).read_bytes()
            entry["size"], entry["sha256"] = len(content), hashlib.sha256(content).hexdigest()
        (self.folder / "manifest.json").write_text(json.dumps(self.manifest))

    def _tensor(self, name: str) -> onnx.TensorProto:
        (found,) = [one for one in self.model.graph.initializer if one.name == name]
        return found


@dataclass(frozen=True)
class Fault:
    """What is wrong, in which model, and the module `--locate` must name ("" where there is none).

    `inject` is given the bundle and another training of the same model, for what comes from there.
    """

    name: str
    model: str
    module: str
    inject: Callable[[Editor, tiny.Trained], None]


def flip_bit(bit: int) -> Callable[[np.ndarray], np.ndarray]:
    """Flip one bit of a matrix's largest number; bit 23 is the exponent's lowest, 22 to 0 below."""

    def flip(array: np.ndarray) -> np.ndarray:
        changed = array.copy()
        place = np.unravel_index(np.abs(array).argmax(), array.shape)
        changed[place] = (changed[place].view(np.uint32) ^ np.uint32(1 << bit)).view(np.float32)
        return changed

    return flip


def changed(node: str, place: int, how: Callable[[np.ndarray], np.ndarray]) -> Any:
    """A fault in one constant of one node."""

    def inject(bundle: Editor, _: tiny.Trained) -> None:
        bundle.set_constant(node, place, how(bundle.constant(node, place)))

    return inject


def attribute(node: str, name: str, value: Any) -> Any:
    """A fault in one attribute of one node."""
    return lambda bundle, _: bundle.attribute(node, name, value)


def appended(node: str, *operators: tuple[str, list[Any], dict[str, Any]]) -> Any:
    """A fault that computes more after a node."""
    return lambda bundle, _: bundle.after(node, *operators)


def prompts(tensor: str, how: Callable[[np.ndarray], np.ndarray]) -> Any:
    """A fault in one tensor of the prompt's file."""

    def inject(bundle: Editor, _: tiny.Trained) -> None:
        bundle.prompt[tensor] = np.ascontiguousarray(how(bundle.prompt[tensor]))

    return inject


def other_head(name: str) -> Any:
    """A head's weight from another training."""

    def inject(bundle: Editor, other: tiny.Trained) -> None:
        weight = other.model.get_base_model().get_parameter(name).detach().numpy()
        assert weight.shape == bundle.prompt[f"head.{name}"].shape
        bundle.prompt[f"head.{name}"] = weight

    return inject


def _other_prefix(other: tiny.Trained) -> np.ndarray:
    from ptdeploy.program.prompt import prefix_kv

    return prefix_kv(other.model.get_base_model(), _other_tokens(other))


def _other_tokens(other: tiny.Trained) -> np.ndarray:
    return other.model.get_prompt(batch_size=1)[0].detach().numpy()


def swap_columns(array: np.ndarray, width: int = 8) -> np.ndarray:
    """The first two heads of a projection's output, exchanged."""
    changed = array.copy()
    changed[..., :width], changed[..., width : 2 * width] = (
        array[..., width : 2 * width],
        array[..., :width],
    )
    return changed


def _swap_token_vectors(table: np.ndarray) -> np.ndarray:
    changed = table.copy()
    changed[:50], changed[50:100] = table[50:100], table[:50]
    return changed


def _stale_prefix(bundle: Editor, other: tiny.Trained) -> None:
    bundle.prompt["prefix_kv"] = _other_prefix(other)


def _without_values(prefix: np.ndarray) -> np.ndarray:
    return np.stack([prefix[:, 0], np.zeros_like(prefix[:, 1])], axis=1)


def _no_padding_masked(bundle: Editor, _: tiny.Trained) -> None:
    for node in bundle.model.graph.node:
        if node.op_type == "MultiHeadAttention":
            node.input[4] = ""


def _no_mask(node: str) -> Any:
    def inject(bundle: Editor, _: tiny.Trained) -> None:
        where = bundle.node(node)
        where.input[2] = where.input[1]

    return inject


def _skip_layer(bundle: Editor, _: tiny.Trained) -> None:
    # Its sum is taken by the norm behind it: that now adds nothing to the layer before.
    norm = "SkipSimplifiedLayerNormalization"
    bundle.node(f"model.norm/{norm}").input[0] = bundle.node(
        f"model.layers.1.input_layernorm/{norm}"
    ).output[3]
    bundle.before(f"model.norm/{norm}", 1, "Mul", np.float32(0), "model.layers.1/Mul_fault")


def _other_table(change: Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]) -> Any:
    def inject(bundle: Editor, _: tiny.Trained) -> None:
        node = _Q0 + "self_attn/GroupQueryAttention"
        tables = change(bundle.constant(node, 7), bundle.constant(node, 8))
        for place, table in zip((7, 8), tables, strict=True):
            bundle.set_constant(node, place, np.ascontiguousarray(table, dtype=np.float32))

    return inject


def _numbered_as_one(bundle: Editor, _: tiny.Trained) -> None:
    for node in bundle.model.graph.node:
        if node.op_type == "GroupQueryAttention":
            node.input[9] = ""


def _turned(positions: int, angles: int, theta: float) -> Sequence[np.ndarray]:
    turned = np.outer(np.arange(positions), theta ** -(np.arange(angles) / angles))
    return np.cos(turned), np.sin(turned)


def with_prompts_length(bundle: Editor, _: tiny.Trained | None = None) -> None:
    """No row's positions begin before the prompt's end, though it may have no prompt."""
    (prompt,) = bundle.manifest["prompts"].values()
    length = np.array([prompt["num_virtual_tokens"]], np.int64)
    bundle.before("program/Unsqueeze", 0, "Max", length)


def _off_by_one(node: str) -> Any:
    return appended(node, ("Add", [None, np.int64(1)], {}))


def _swap_words(bundle: Editor, _: tiny.Trained) -> None:
    path = bundle.folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["e"], vocabulary["t"] = vocabulary["t"], vocabulary["e"]
    path.write_text(json.dumps(tokenizer))


def _keep_case(bundle: Editor, _: tiny.Trained) -> None:
    path = bundle.folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["normalizer"] = None
    path.write_text(json.dumps(tokenizer))


def _overflow(node: str) -> Any:
    # As where a residual grows past 65504 in half precision.
    return appended(
        node,
        ("Mul", [None, np.float32(1e6)], {}),
        ("Cast", [None], {"to": onnx.TensorProto.FLOAT16}),
        ("Cast", [None], {"to": onnx.TensorProto.FLOAT}),
        ("Mul", [None, np.float32(1e-6)], {}),
    )


def _to_bfloat16(array: np.ndarray) -> np.ndarray:
    return (array.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


_HEADS = np.arange(32).reshape(4, 8)[[1, 0, 2, 3]].ravel()
_BERT, _QWEN = "bert.encoder.layer.{}.", "model.layers.{}."
_B0, _B1, _Q0, _Q1 = _BERT.format(0), _BERT.format(1), _QWEN.format(0), _QWEN.format(1)
_GPT = "transformer.h.0."

FAULTS = (
    Fault("a weight's lowest exponent bit flipped", "bert", _B1 + "intermediate.dense",
          changed(_B1 + "intermediate.dense/MatMul", 1, flip_bit(23))),
    Fault("a weight's highest mantissa bit flipped", "qwen2", _Q1 + "mlp.down_proj",
          changed(_Q1 + "mlp.down_proj/MatMul", 1, flip_bit(22))),
    Fault("a head's weight, mantissa bit 15 flipped", "gpt2", "lm_head",
          changed("lm_head/MatMul", 1, flip_bit(15))),
    Fault("two heads' values swapped", "bert", _B0 + "attention.self.value",
          changed(_B0 + "attention.self.value/MatMul", 1, swap_columns)),
    Fault("two heads swapped after attention", "qwen2", _Q0 + "self_attn",
          appended(_Q0 + "self_attn/GroupQueryAttention", ("Gather", [None, _HEADS], {"axis": 2}))),
    Fault("KV heads swapped", "qwen2", _Q0 + "self_attn.k_proj",
          changed(_Q0 + "self_attn.k_proj/MatMul", 1, swap_columns)),
    Fault("positions off by one (rotary)", "qwen2", "model.rotary_emb",
          _off_by_one("program/Add")),
    Fault("positions off by one (learned)", "gpt2", "transformer.wpe",
          _off_by_one("program/Add")),
    Fault("positions off by one (encoder)", "bert", "bert.embeddings.position_embeddings",
          _off_by_one("bert.embeddings/Slice")),
    Fault("positions begin behind a prompt always", "qwen2", "", with_prompts_length),
    Fault("mask's sign wrong", "bert", _B0 + "attention.self",
          appended("program/Cast", ("Sub", [np.int32(1), None], {}))),
    Fault("padding not masked", "bert", _B0 + "attention.self", _no_padding_masked),
    Fault("future not masked", "gpt2 classes", _GPT + "attn", _no_mask("transformer/Where")),
    Fault("epsilon missing", "qwen2", _Q0 + "input_layernorm",
          attribute(_Q0 + "input_layernorm/SimplifiedLayerNormalization", "epsilon", 0.0)),
    Fault("GELU's tanh approximation", "bert", _B0 + "intermediate.intermediate_act_fn",
          attribute(_B0 + "intermediate.intermediate_act_fn/Gelu", "approximate", "tanh")),
    Fault("SiLU's sigmoid scaled", "qwen2", _Q0 + "mlp.act_fn",
          lambda bundle, _: bundle.before(
              _Q0 + "mlp.act_fn/Sigmoid", 0, "Mul", np.float32(1.702))),
    Fault("bias dropped", "bert", _B0 + "output.dense",
          lambda bundle, _: bundle.bypass(_B0 + "output.dense/Add")),
    Fault("bias dropped (fused QKV)", "gpt2", _GPT + "attn.c_attn",
          changed(_GPT + "attn.c_attn/Gemm", 2, np.zeros_like)),
    Fault("prompt rows permuted", "bert", "prompt_encoder",
          prompts("virtual_tokens", lambda rows: rows[::-1])),
    Fault("prompt from another training", "distilbert", "prompt_encoder",
          lambda bundle, other: bundle.prompt.update(virtual_tokens=_other_tokens(other))),
    Fault("virtual tokens looked up one row early", "bert", "prompt_encoder",
          appended("program/Sub", ("Sub", [None, np.int64(1)], {}))),
    Fault("stale prefix KV", "qwen2", _Q0 + "self_attn", _stale_prefix),
    Fault("prefix keys and values exchanged", "gpt2", _GPT + "attn",
          prompts("prefix_kv", lambda kv: kv[:, ::-1])),
    # In every layer: what the prompt's rows in another order would have left, but for positions.
    Fault("prefix rows reversed", "bloom", _GPT + "self_attention",
          prompts("prefix_kv", lambda kv: kv[:, :, :, ::-1])),
    # Whatever quantizing the weights costs, it is not the prompt's effect.
    *(Fault(fault, model, _Q0 + "self_attn", inject)
      for model in PRECISIONS
      for fault, inject in (
          ("stale prefix KV", _stale_prefix),
          ("prompt's values left out", prompts("prefix_kv", _without_values)))),
    Fault("stale prefix KV (a classifier's)", "gpt2 classes", _GPT + "attn", _stale_prefix),
    Fault("another layer's prefix KV", "gpt2 classes", _GPT + "attn",
          appended("program/Add_1", ("Add", [None, np.int64(1)], {}))),
    Fault("head from another checkpoint", "bert", "classifier",
          other_head("classifier.weight")),
    Fault("a head's bias dropped", "distilbert", "classifier",
          prompts("head.classifier.bias", np.zeros_like)),
    Fault("head from another checkpoint", "gpt2 classes", "score",
          other_head("score.weight")),
    Fault("fp16 overflow", "bert", _B1 + "output.dense", _overflow(_B1 + "output.dense/MatMul")),
    Fault("a layer's weights cut to bfloat16", "qwen2", _Q1 + "mlp.gate_proj",
          changed(_Q1 + "mlp.gate_proj/MatMul", 1, _to_bfloat16)),
    Fault("tokenizer: two characters swapped", "bert", "", _swap_words),
    Fault("tokenizer: lower-casing lost", "bert", "", _keep_case),
    Fault("rope theta 500000", "qwen2", "model.rotary_emb",
          changed("model.rotary_emb/Mul", 1,
                  lambda f: (500_000.0 ** -(np.arange(f.size) / f.size)).astype(np.float32)
                  .reshape(f.shape))),
    Fault("attention scale wrong", "mistral", "model.layers.0.self_attn",
          attribute("model.layers.0.self_attn/GroupQueryAttention", "scale", 0.25)),
    Fault("attention scale missing", "bert", _B0 + "attention.self",
          attribute(_B0 + "attention.self/MultiHeadAttention", "scale", 1.0)),
    Fault("sliding window dropped", "mistral", "model.layers.0.self_attn",
          attribute("model.layers.0.self_attn/GroupQueryAttention", "local_window_size", None)),
    Fault("layer skipped", "qwen2", "model.layers.1", _skip_layer),
    Fault("residual dropped", "bert", _B0 + "output",
          lambda bundle, _: bundle.bypass(_B0 + "output/Add")),
    Fault("weight transposed", "qwen2", _Q0 + "self_attn.o_proj",
          changed(_Q0 + "self_attn.o_proj/MatMul", 1, lambda w: w.T)),
    Fault("a norm's weight off by 1 %", "bert", _B1 + "attention.output.LayerNorm",
          changed(_B1 + "attention.output.LayerNorm/LayerNormalization", 1,
                  lambda w: w * np.float32(1.01))),
    Fault("weights of another layer", "gpt2", _GPT + "mlp.c_fc",
          lambda bundle, _: bundle.set_constant(
              _GPT + "mlp.c_fc/Gemm", 1, bundle.constant("transformer.h.1.mlp.c_fc/Gemm", 1))),
    Fault("token embeddings swapped", "distilbert", "distilbert.embeddings.word_embeddings",
          changed("distilbert.embeddings.word_embeddings/Gather", 0, _swap_token_vectors)),
    Fault("pooled at the second position", "bert", _B1 + "attention.self.query",
          changed(_B1 + "attention.self.query/Gather", 1, lambda index: index + 1)),
    Fault("class read one token early", "gpt2 classes", "score",
          appended("program/Sub_3", ("Sub", [None, np.int64(1)], {}))),
    Fault("rotary missing on the keys", "qwen2", _Q0 + "self_attn",
          lambda bundle, _: bundle.bypass(_Q0 + "self_attn/RotaryEmbedding_1")),
    Fault("joined rows see each other", "qwen2 wide", _Q1 + "self_attn",
          changed("program/Where", 2, np.zeros_like)),
    Fault("joined rows numbered as one text", "qwen2 wide", _Q0 + "self_attn", _numbered_as_one),
    Fault("rotary table one position late", "qwen2 wide", _Q0 + "self_attn",
          _other_table(lambda cosines, sines: (np.roll(cosines, 1, 0), np.roll(sines, 1, 0)))),
    Fault("rotary table without its sines' sign", "qwen2 wide", _Q0 + "self_attn",
          _other_table(lambda cosines, sines: (cosines, -sines))),
    Fault("rotary table of theta 500000", "qwen2 wide", _Q0 + "self_attn",
          _other_table(lambda cosines, _: _turned(*cosines.shape, 500_000.0))),
    Fault("logits scaled by 0.999", "mistral", "lm_head",
          appended("lm_head/MatMul", ("Mul", [None, np.float32(0.999)], {}))),
)  # fmt: skip


def with_table(
    bundle: Path, name: str, change: Callable[[np.ndarray], np.ndarray], folder: Path
) -> Path:
    """A bundle whose engine has another embedding table."""
    editor = Editor.copy(bundle, folder)
    (table,) = (one for one in editor.model.graph.initializer if one.name.endswith(name))
    array = change(np.array(numpy_helper.to_array(table)))
    table.CopyFrom(numpy_helper.from_array(array, table.name))
    editor.write()
    return folder
