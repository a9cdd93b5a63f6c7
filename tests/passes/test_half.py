"""float16 graphs, run by ONNX Runtime on a CPU, which converts where it has no kernel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from support import tiny
from support.alone import peft_alone, random_rows

from ptdeploy.backends.ort import session
from ptdeploy.bundle import DEFAULT_PROMPT, Bundle, Quantization, staged
from ptdeploy.passes import PassContext, run_passes
from ptdeploy.program import export
from ptdeploy.program.kinds import BuildOptions
from ptdeploy.program.manifest import build_manifest, limits
from ptdeploy.program.prompt import freeze, save_prompt
from ptdeploy.runtime import Engine, open_engine
from ptdeploy.source.base import resolve_base
from ptdeploy.source.base_weights import load_model
from ptdeploy.source.checkpoint import read_checkpoint
from ptdeploy.source.meaning import read_meaning
from ptdeploy.targets.onnx_model import write_model

HALF = ir.DataType.FLOAT16
CASES = [
    ("bert", "SEQ_CLS", True),
    ("roberta", "TOKEN_CLS", True),
    ("qwen2", "SEQ_CLS", True),
    ("gpt2", "CAUSAL_LM", False),
    ("qwen2", "CAUSAL_LM", True),
    ("qwen2", "CAUSAL_LM", False),
    ("bloom", "CAUSAL_LM", True),
]


def compiled_in_half(
    trained: tiny.Trained, folder: Path, fuse: bool, quantization: Quantization | None = None
) -> tuple[ir.Model, Engine]:
    """The graph that `--device cuda --precision fp16` builds, opened on the CPU."""
    checkpoint = read_checkpoint(trained.adapter)
    base = resolve_base(checkpoint, str(trained.base))
    model = load_model(checkpoint, base)
    kind = base.kind
    prompt = freeze(checkpoint, model, kind.needs_prefix_kv, kind.has_trained_head)
    options = BuildOptions(operators="onnxruntime" if fuse else None)
    program, route = kind.build(model, base, prompt, options)
    signature = program.signature.computed_in("float16")
    bounds = limits(base, route, 5, None, None)
    exported = export.to_onnx(program, bounds)
    graph = run_passes(exported, PassContext(signature, quantization, "float16"))
    folder.mkdir()
    stored = staged(save_prompt(prompt, folder), "prompt", DEFAULT_PROMPT)
    files = (*write_model(graph, folder), stored)
    manifest = build_manifest(
        checkpoints={DEFAULT_PROMPT: checkpoint},
        base=base,
        weights_sha256="0" * 64,
        prompts={DEFAULT_PROMPT: prompt},
        signature=signature,
        meaning=read_meaning(checkpoint, base),
        target="ort",
        device="cpu",
        precision="fp16",
        route=route,
        quantization=quantization,
        freeze_kv=True,
        limits=bounds,
        tokenizer=None,
        files=files,
    )
    return graph, open_engine(Bundle(folder, manifest))


@pytest.mark.parametrize(("architecture", "task", "fuse"), CASES)
def test_a_graph_in_half_precision_is_near_peft_in_fp32(tmp_path, architecture, task, fuse):
    trained = tiny.make(tmp_path, architecture, task)
    graph, engine = compiled_in_half(trained, tmp_path / "bundle", fuse)
    products = [
        node for node in graph.graph if node.op_type in ("MatMul", "FusedMatMul", "Gemm", "Gather")
    ]
    large = [v.const_value for v in graph.graph.initializers.values() if v.const_value.size > 500]
    assert large
    assert {tensor.dtype for tensor in large if tensor.dtype.is_floating_point()} == {HALF}
    assert any(node.outputs[0].dtype == HALF for node in products)
    rows = random_rows()[:5]
    for ours, row in zip(engine.logits([r.tolist() for r in rows]), rows, strict=True):
        theirs = peft_alone(trained.model, row, task)
        assert ours.dtype == np.float32
        assert np.abs(ours - theirs).max() < 0.02 * max(1, np.abs(theirs).max())
        # Half precision was computed with, not only stored.
        assert np.abs(ours - theirs).max() > 1e-5


def test_a_mask_value_does_not_become_infinite():
    from ptdeploy.passes.half import _rounded

    lowest = np.array([np.finfo(np.float32).min, 0, -np.inf], np.float32)
    rounded = _rounded(lowest, np.dtype(np.float16))
    assert rounded.tolist() == [np.finfo(np.float16).min, 0, -np.inf]


def test_int4_weights_are_multiplied_in_half_precision(tmp_path):
    trained = tiny.make(tmp_path, "qwen2", "CAUSAL_LM")
    eight = Quantization(8, 32, 1, 0, 100)
    graph, engine = compiled_in_half(trained, tmp_path / "bundle", True, eight)
    rounded = [node for node in graph.graph if node.op_type == "MatMulNBits"]
    assert rounded
    assert all(node.inputs[2].const_value.dtype == HALF for node in rounded)
    row = random_rows()[4]
    (ours,) = engine.logits([row.tolist()])
    theirs = peft_alone(trained.model, row, "CAUSAL_LM")
    assert np.abs(ours - theirs).max() < 0.1 * np.abs(theirs).max()


def test_a_kv_buffer_in_an_engines_own_memory_gives_the_same(compiled, monkeypatch):
    """OrtValues, as a GPU's memory is held, instead of host arrays: same rows, sessions, forks."""
    import onnxruntime

    import ptdeploy

    def place(self: session.OrtSession, array: np.ndarray) -> session.OrtMemory:
        value = onnxruntime.OrtValue.ortvalue_from_numpy(array.copy(), "cpu", 0)
        return session.OrtMemory("cpu", value.data_ptr(), array.shape, array.dtype, value)

    def answers(bundle: Path) -> list[list[int]]:
        engine = ptdeploy.load(bundle)
        talk = engine.session()
        talk.append([5, 6, 7])
        fork = talk.fork()
        fork.append([8])
        batch = engine.generate([[1, 2, 3], [4], [5, 6]], 12, eos_token_ids=())
        ends = [one.generate(6, eos_token_ids=()) for one in (talk, fork)]
        return [one.token_ids for one in (*batch, *ends)]

    for architecture in ("qwen2", "bloom"):
        bundle = compiled(architecture, "CAUSAL_LM").bundle
        want = answers(bundle)
        with monkeypatch.context() as patch:
            patch.setattr(session.OrtSession, "place", place)
            assert answers(bundle) == want
