"""The same weights in each engine's own format: `python make.py KIND SOURCE RESULT PRECISION`.

Some need torch, and run with this project's Python; others the package of their engine, and run
with the Python that has the peers. See MAKERS and who runs them in benchmarks/peers.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def openvino_decoder(base: Path, result: Path, precision: str) -> None:
    """A stateful model as optimum-intel makes it, of a model that writes; needs torch."""
    import openvino
    import torch
    from stateful import exported, make_stateful
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    graph = openvino.convert_model(exported(model))
    make_stateful(graph, model.config)
    openvino.save_model(graph, result, compress_to_fp16=False)


def openvino_compressed(source: Path, result: Path, precision: str) -> None:
    """Its weights in int8, or in int4 with the embeddings in int8: nncf's own defaults."""
    import nncf
    import openvino

    mode = {"int8": "INT8_ASYM", "int4": "INT4_ASYM"}[precision]
    graph = openvino.Core().read_model(source)
    graph = nncf.compress_weights(graph, mode=getattr(nncf.CompressWeightsMode, mode))
    openvino.save_model(graph, result, compress_to_fp16=False)


def openvino_quantized(source: Path, result: Path, precision: str) -> None:
    """An encoder in int8 with activations calibrated, on tokens of no meaning."""
    import nncf
    import openvino

    graph = openvino.Core().read_model(source)
    random, names = np.random.default_rng(0), ("input_ids", "attention_mask")
    texts = [random.integers(1000, 20_000, (1, 64)) for _ in range(32)]
    inputs = [dict(zip(names, (one, np.ones_like(one)), strict=True)) for one in texts]
    kind = nncf.ModelType.TRANSFORMER
    graph = nncf.quantize(graph, nncf.Dataset(inputs), model_type=kind, subset_size=len(inputs))
    openvino.save_model(graph, result, compress_to_fp16=False)


def plain_encoder(base: Path, result: Path, precision: str) -> None:
    """The base model with a new head and no prompt, in ONNX; needs torch."""
    import onnx
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=6, attn_implementation="eager"
    ).eval()
    example, names = torch.full((2, 16), 5), ["input_ids", "attention_mask"]
    torch.onnx.export(
        model,
        (example, torch.ones_like(example)),
        result,
        dynamo=False,
        input_names=names,
        output_names=["logits"],
        dynamic_axes={name: {0: "batch", 1: "sequence"} for name in names},
        opset_version=17,
    )
    graph, config = onnx.load(result), model.config
    sizes = {"num_heads": config.num_attention_heads, "hidden_size": config.hidden_size}
    onnx.helper.set_model_props(graph, {name: str(size) for name, size in sizes.items()})
    onnx.save(graph, result)


def onnxruntime_fused(source: Path, result: Path, precision: str) -> None:
    """With ONNX Runtime's own fusions for transformers; needs its `onnx`."""
    import onnx
    from onnxruntime.transformers import optimizer

    # It does not always find them in the graph.
    sizes = {one.key: int(one.value) for one in onnx.load(source).metadata_props}
    found = optimizer.optimize_model(str(source), model_type="bert", **sizes)
    assert found.get_fused_operator_statistics()["Attention"], "it found no attention"
    found.save_model_to_file(str(result))


def onnx_dynamic(source: Path, result: Path, precision: str) -> None:
    """ONNX Runtime's dynamic quantization: int8 weights, a scale for each column."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source,
        result,
        weight_type=QuantType.QInt8,
        per_channel=True,
        # It cannot work out what comes out of a fused operator.
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )


def genai(base: Path, result: Path, precision: str) -> None:
    """onnxruntime-genai's builder, with its defaults; needs torch."""
    import runpy

    given = {"-i": base, "-o": result, "-p": precision, "-e": "cpu", "-c": result / "cache"}
    sys.argv = ["builder", *(str(part) for pair in given.items() for part in pair)]
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")


def gguf(base: Path, result: Path, precision: str) -> None:
    """A GGUF file in float32, without a tokenizer."""
    from gguf import GGUFWriter, get_tensor_name_map
    from gguf.constants import MODEL_ARCH
    from safetensors.numpy import load_file

    config = json.loads((base / "config.json").read_text())
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    writer = GGUFWriter(result, "qwen2")
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(0)
    names = get_tensor_name_map(MODEL_ARCH.QWEN2, layers)
    for name, tensor in load_file(base / "model.safetensors").items():
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(own, tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_quantized(source: Path, result: Path, precision: str) -> None:
    """What `llama-quantize` makes: Q8_0 or Q4_0, embeddings that are a head too in its own type."""
    import ctypes

    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{precision}")
    failed = llama_cpp.llama_model_quantize(
        str(source).encode(), str(result).encode(), ctypes.byref(options)
    )
    assert failed == 0, failed


def ctranslate2(base: Path, result: Path, precision: str) -> None:
    """CTranslate2's own format: its converter for Qwen2, on arrays in place of torch's modules."""
    from ctranslate2 import specs
    from ctranslate2.specs import common_spec
    from safetensors.numpy import load_file

    config = json.loads((base / "config.json").read_text())
    weights = load_file(base / "model.safetensors")
    spec = specs.TransformerDecoderModelSpec.from_config(
        config["num_hidden_layers"],
        config["num_attention_heads"],
        activation=common_spec.Activation.SWISH,
        pre_norm=True,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,
        rotary_interleave=False,
        rotary_base=config["rope_parameters"]["rope_theta"],
        num_heads_kv=config["num_key_value_heads"],
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = weights["model.embed_tokens.weight"]
    decoder.projection.weight = weights["model.embed_tokens.weight"]
    decoder.layer_norm.gamma = weights["model.norm.weight"]
    for number, layer in enumerate(decoder.layer):
        _ctranslate2_layer(layer, weights, f"model.layers.{number}.")
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "t0"
    spec.config.layer_norm_epsilon = config["rms_norm_eps"]
    spec.register_vocabulary([f"t{one}" for one in range(config["vocab_size"])])
    spec.validate()
    spec.optimize(None if precision == "float32" else precision)
    result.mkdir(parents=True, exist_ok=True)
    spec.save(str(result))


def _ctranslate2_layer(layer: Any, weights: dict[str, np.ndarray], at: str) -> None:
    attention, feed = f"{at}self_attn.", f"{at}mlp."
    layer.self_attention.layer_norm.gamma = weights[f"{at}input_layernorm.weight"]
    layer.ffn.layer_norm.gamma = weights[f"{at}post_attention_layernorm.weight"]
    joined, out = layer.self_attention.linear
    for part in ("weight", "bias"):
        three = [weights[f"{attention}{one}_proj.{part}"] for one in "qkv"]
        setattr(joined, part, np.concatenate(three))
    out.weight = weights[f"{attention}o_proj.weight"]
    layer.ffn.linear_0.weight = weights[f"{feed}gate_proj.weight"]
    layer.ffn.linear_0_noact.weight = weights[f"{feed}up_proj.weight"]
    layer.ffn.linear_1.weight = weights[f"{feed}down_proj.weight"]


MAKERS = {
    one.__name__: one
    for one in (
        openvino_decoder,
        openvino_compressed,
        openvino_quantized,
        plain_encoder,
        onnxruntime_fused,
        onnx_dynamic,
        genai,
        gguf,
        gguf_quantized,
        ctranslate2,
    )
}


def main() -> None:
    kind, source, result, precision = sys.argv[1:5]
    # Packages of the peers, behind those of this Python.
    sys.path += sys.argv[5:]
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    MAKERS[kind](Path(source), Path(result), precision)


if __name__ == "__main__":
    main()
