"""Every reader of a file that ptdeploy does not trust, as a function of that file's bytes.

A reader gives an answer or raises a PtdeployError; anything else is a finding. `seeds` are files as
they should be, small, made here and the same each time.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ptdeploy.backends.trt.engine_file import read_info
from ptdeploy.bundle import Bundle, Manifest, read_bundle
from ptdeploy.bundle.quantization import read_texts
from ptdeploy.parity.cases import BatchCase
from ptdeploy.parity.reference import Greedy, Reference, ReferenceRow, TextRow
from ptdeploy.parity.reference.store import load_reference, save_reference
from ptdeploy.parity.thresholds import read_thresholds, thresholds_for
from ptdeploy.runtime import chat
from ptdeploy.runtime.tokenizer import Tokenizer
from ptdeploy.source.checkpoint import nemo as nemo_archive
from ptdeploy.source.checkpoint.labels import read_labels
from ptdeploy.source.checkpoint.nemo_config import check_model, check_template, read_config
from ptdeploy.source.checkpoint.peft_config import read_peft_config
from ptdeploy.source.checkpoint.tensors import read_json, read_tensors

CORPUS = Path(__file__).parent / "corpus"
_SHA = "0" * 64
# By role, and whose they are.
_FILES = {
    "model": "model",
    "weights": "model",
    "prompt": "default",
    "tokenizer": None,
    "reference": "default",
    "parity": "default",
}


@dataclass(frozen=True)
class Reader:
    """`read(folder, data)` puts the bytes where the reader looks, and reads them."""

    name: str
    read: Callable[[Path, bytes], object]
    seeds: Callable[[Path], list[bytes]]


def _texts(path: Path) -> tuple[str, ...]:
    return read_texts(path, "--quality-text")


def _written(name: str, read: Callable[[Path], object]) -> Callable[[Path, bytes], object]:
    def run(folder: Path, data: bytes) -> object:
        (folder / name).write_bytes(data)
        return read(folder / name)

    return run


def _tensor(name: str, role: str, dtype: str, shape: list[Any]) -> dict[str, Any]:
    return {"name": name, "role": role, "dtype": dtype, "shape": shape, "meaning": "m"}


def _signature(task: str) -> dict[str, list[dict[str, Any]]]:
    text = ["batch", "sequence"]
    ids = _tensor("input_ids", "ids", "int64", text)
    if task != "CAUSAL_LM":
        return {
            "inputs": [
                ids,
                _tensor("attention_mask", "mask", "int64", text),
                _tensor("virtual_tokens", "table", "float32", ["virtual", 32]),
                _tensor("prompt_index", "prompt", "int64", ["batch"]),
                _tensor("head.classifier.weight", "head", "float32", ["prompts", "classes", 32]),
            ],
            "outputs": [_tensor("logits", "logits", "float32", ["batch", "classes"])],
        }
    kv = ["batch", 2, "slots", 8]
    past, present = (
        [_tensor(f"{name}.0.{part}", role, "float32", kv) for part in ("key", "value")]
        for name, role in (("past_key_values", "past"), ("present", "present"))
    )
    lengths = _tensor("past_lengths", "lengths", "int64", ["batch"])
    positions = _tensor("logits_positions", "positions", "int64", ["kept"])
    logits = _tensor("logits", "logits", "float32", ["batch", "kept", 101])
    return {"inputs": [ids, lengths, positions, *past], "outputs": [logits, *present]}


def manifest(task: str = "CAUSAL_LM") -> dict[str, Any]:
    """A manifest as compile writes it, of a decoder with one layer or of an encoder."""
    causal = task == "CAUSAL_LM"
    parity = {"passed": True, "cases": 3, "max_abs": 1e-7, "top1_agreement": 1.0, "reference": "r"}
    return {
        "format": "ptdeploy-bundle",
        "format_version": 4,
        "versions": {"ptdeploy": "0.1.0"},
        "target": "ort",
        "device": "cpu",
        "precision": "fp32",
        "task": task,
        "graphs": {
            "model": {"route": "fused" if causal else "plain", "reason": "r", **_signature(task)}
        },
        "prompts": {
            "default": {
                "kind": "MLP prompt encoder",
                "num_virtual_tokens": 5,
                "token_dim": 32,
                "sha256": _SHA,
                "prefix_kv": [1, 2, 2, 5, 8] if causal else None,
                "labels": [] if causal else ["A", "B", "C"],
                "source": {
                    "format": "PEFT adapter",
                    "adapter": "default",
                    "files": {"adapter_config.json": _SHA},
                },
                "parity": parity,
            }
        },
        "default_prompt": "default",
        "base": {
            "name": "base",
            "architecture": "qwen2" if causal else "bert",
            "config_sha256": _SHA,
            "weights_sha256": _SHA,
        },
        "limits": {"max_context": 64, "vocab_size": 101, "max_batch": None},
        "generation": {"max_new_tokens": 20, "eos_token_ids": [2]} if causal else None,
        "files": [
            {"path": f"{role}.bin", "role": role, "size": 4, "sha256": _SHA, "of": of}
            for role, of in _FILES.items()
        ],
    }


def _read_manifest(folder: Path, data: bytes) -> object:
    for role in _FILES:
        file = folder / f"{role}.bin"
        if not file.exists():
            file.write_bytes(b"1234")
    (folder / "manifest.json").write_bytes(data)
    return read_bundle(folder, hashes=False)


def _read_reference(task: str) -> Callable[[Path, bytes], object]:
    def run(folder: Path, data: bytes) -> object:
        import msgspec

        body = manifest(task)
        file = {"path": "r.safetensors", "role": "reference", "size": 1, "sha256": _SHA}
        body["files"] = [{**file, "of": "default"}]
        (folder / "r.safetensors").write_bytes(data)
        return load_reference(Bundle(folder, msgspec.convert(body, Manifest)))

    return run


def _references(task: str) -> Callable[[Path], list[bytes]]:
    def make(folder: Path) -> list[bytes]:
        ids = np.arange(3, dtype=np.int64)
        causal = task == "CAUSAL_LM"
        logits = np.zeros((3, 101) if causal else 3, np.float32)
        one = Greedy(ids, ids, np.ones(3, np.float32)) if causal else None
        nll = np.zeros(2 if causal else 0, np.float32)
        text = TextRow(ids, ids if causal else ids[:1], nll)
        reference = Reference(
            rows=(
                ReferenceRow(ids, logits),
                ReferenceRow(ids[:1], logits[:1] if causal else logits, "text"),
            ),
            greedy=(one,) if one else (),
            cases=(BatchCase((0,), "right"), BatchCase((1,), "left", "text")),
            thresholds=thresholds_for("fp32", None, "softmax"),
            texts=("a text",),
            text_ids=((1, 2),),
            made_by="PEFT",
            evaluation=(text,),
            evaluated_on="text",
        )
        name = save_reference(reference, folder)
        return [(folder / name).read_bytes()]

    return make


def _tensors(suffix: str) -> Callable[[Path], list[bytes]]:
    def make(folder: Path) -> list[bytes]:
        import torch
        from safetensors.torch import save

        state = {
            "prompt_embeddings": torch.zeros(2, 4),
            "base_model.classifier.weight": torch.zeros(3, 4, dtype=torch.bfloat16),
        }
        if suffix == ".safetensors":
            return [save(state)]
        found = []
        for zipped in (True, False):
            stream = io.BytesIO()
            torch.save(state, stream, _use_new_zipfile_serialization=zipped)
            found.append(stream.getvalue())
        return found

    return make


def _tokenizers(_folder: Path) -> list[bytes]:
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    words = {w: i for i, w in enumerate(["[UNK]", "[CLS]", "[SEP]", "the", "cat", "##s", "a"])}
    first = tokenizers.Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    first.normalizer = normalizers.BertNormalizer()
    first.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    first.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 1), ("[SEP]", 2)]
    )
    first.decoder = decoders.WordPiece()
    bpe = {c: i for i, c in enumerate([*"abcdehst ", "th", "the"])}
    second = tokenizers.Tokenizer(models.BPE(bpe, [("t", "h"), ("th", "e")]))
    second.pre_tokenizer = pre_tokenizers.Metaspace()
    second.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    second.add_special_tokens(["<s>", "</s>"])
    return [one.to_str().encode() for one in (first, second)]


def _read_tokenizer(path: Path) -> object:
    tokenizer = Tokenizer(path)
    encoding = tokenizer.encode("The cats, a the\u0301 🙂 <s>")
    return tokenizer.decode(list(encoding.ids))


_TEMPLATE = {
    "template": "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}{{ eos_token }}{% endif %}",
    "special_tokens": {"eos_token": "</s>"},
}


def _read_template(path: Path) -> object:
    return chat.render(chat.load(path), [{"role": "user", "content": "hi"}])


_CONFIG = {
    "peft_type": "P_TUNING",
    "task_type": "SEQ_CLS",
    "num_virtual_tokens": 5,
    "token_dim": 32,
    "num_transformer_submodules": 1,
    "encoder_reparameterization_type": "MLP",
    "encoder_hidden_size": 24,
    "encoder_num_layers": 2,
    "base_model_name_or_path": "base",
    "revision": None,
}
_ENGINE = {
    "flavor": "rtx",
    "version": "1.7.1",
    "gpu": "",
    "compute_capabilities": ["8.6"],
    "profiles": [{"name": "requests", "shapes": {"input_ids": [[1, 1], [1, 8], [4, 32]]}}],
    "tf32": False,
    "strip_weights": False,
    "version_compatible": False,
    "hardware_compatibility": "none",
    "workspace": None,
    "optimization_level": 3,
    "precisions": {"float32": {"MatMul": 3}},
    "onnx_sha256": _SHA,
}
_THRESHOLDS = {"max_abs": 1e-4, "cosine": 0.9, "min_accuracy": 0.5, "max_accuracy_drop": 0.1}
_INDEX = {"weight_map": {"a.weight": "model-00001-of-00001.safetensors"}}


def _read_shards(path: Path) -> object:
    from safetensors.numpy import save_file

    shard = path.parent / "model-00001-of-00001.safetensors"
    if not shard.exists():
        save_file({"a.weight": np.zeros((2, 3), np.float32)}, shard)
    return read_tensors(path)


def _archives(folder: Path) -> list[bytes]:
    from support import nemo

    table, _ = nemo.table_archive(folder / "table.nemo", "one")
    encoder = nemo.trained(nemo.PromptEncoder("lstm", layers=1)).state()
    files = [table, nemo.packed(folder / "encoder.nemo", encoder, nemo.config("taskname"))]
    files.append(nemo.table_archive(folder / "packed.nemo", "one", gzipped=True)[0])
    return [file.read_bytes() for file in files]


def _yaml(_folder: Path) -> list[bytes]:
    import yaml
    from support import nemo

    return [yaml.safe_dump(nemo.config("one", "two")).encode()]


def _read_nemo_config(path: Path) -> object:
    config = read_config("config", path)
    check_model("config", config)
    return check_template("config", config, "one")


def _same(*bodies: Any) -> Callable[[Path], list[bytes]]:
    found = [b if isinstance(b, bytes) else json.dumps(b).encode() for b in bodies]
    return lambda folder: found


READERS = {
    one.name: one
    for one in (
        Reader("manifest", _read_manifest, _same(manifest(), manifest("SEQ_CLS"))),
        Reader("reference-decoder", _read_reference("CAUSAL_LM"), _references("CAUSAL_LM")),
        Reader("reference-classifier", _read_reference("SEQ_CLS"), _references("SEQ_CLS")),
        Reader(
            "safetensors",
            _written("adapter_model.safetensors", read_tensors),
            _tensors(".safetensors"),
        ),
        Reader("torch", _written("pytorch_model.bin", read_tensors), _tensors(".bin")),
        Reader("shards", _written("model.safetensors.index.json", _read_shards), _same(_INDEX)),
        Reader("adapter-config", _written("adapter_config.json", read_peft_config), _same(_CONFIG)),
        Reader("nemo", _written("p.nemo", nemo_archive.read), _archives),
        Reader("nemo-config", _written("model_config.yaml", _read_nemo_config), _yaml),
        Reader("json", _written("config.json", read_json), _same(_CONFIG)),
        Reader("tokenizer", _written("tokenizer.json", _read_tokenizer), _tokenizers),
        Reader("chat-template", _written("chat.json", _read_template), _same(_TEMPLATE)),
        Reader("engine-info", _written("engine.json", read_info), _same(_ENGINE)),
        Reader(
            "thresholds",
            _written("t.json", lambda path: read_thresholds(path, "fp32")),
            _same(_THRESHOLDS),
        ),
        Reader(
            "labels",
            _written("labels.txt", lambda path: read_labels(str(path))),
            _same(b"negative\npositive\n"),
        ),
        Reader("texts", _written("texts.txt", _texts), _same("a text\nünd\n".encode())),
    )
}
