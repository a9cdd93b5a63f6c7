"""What only a GPU can show of the target trt: its engines run, and are in parity."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from support import tiny
from support.alone import peft_alone, random_rows

import ptdeploy
from ptdeploy import QuantizationOptions, TrtOptions
from ptdeploy.backends import get_backend
from ptdeploy.backends.trt import cuda
from ptdeploy.backends.trt.vendor import MODULES, is_installed

pytestmark = pytest.mark.gpu
ABSENT = get_backend("trt").unavailable("cuda")
skip = pytest.mark.skipif(ABSENT is not None, reason=f"no TensorRT here: {ABSENT and ABSENT[0]}")
FLAVORS = [
    pytest.param(
        flavor,
        marks=pytest.mark.skipif(not is_installed(flavor), reason=f"{MODULES[flavor]} is missing"),
    )
    for flavor in MODULES
]
NEAR = {"fp32": 1e-4, "tf32": 2e-2, "fp16": 5e-2, "bf16": 3e-1}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PTDEPLOY_CACHE", str(tmp_path / "cache"))


def compiled(one: tiny.Trained, output, flavor: str = "auto", **options):
    engine = TrtOptions(flavor=flavor, **options.pop("engine", {}))
    return ptdeploy.compile(
        one.adapter, target="trt", base=str(one.base), output=output, engine=engine, **options
    )


@skip
@pytest.mark.parametrize("flavor", FLAVORS)
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("bert", "SEQ_CLS"),
        ("roberta", "TOKEN_CLS"),
        ("qwen2", "SEQ_CLS"),
        ("gpt2", "CAUSAL_LM"),
        ("qwen2", "CAUSAL_LM"),
        ("gemma2", "CAUSAL_LM"),
        ("bloom", "CAUSAL_LM"),
    ],
)
def test_an_engine_is_in_parity_row_by_row(tmp_path, architecture, task, precision, flavor):
    one = tiny.make(tmp_path, architecture, task)
    bundle = compiled(one, tmp_path / "bundle", flavor, precision=precision)
    assert bundle.manifest.prompt.parity is not None
    assert ptdeploy.verify(bundle.path).passed
    engine = ptdeploy.load(bundle.path)
    rows = random_rows()
    for got, row in zip(engine.logits(rows), rows, strict=True):
        assert np.abs(got - peft_alone(one.model, row, task)).max() < NEAR[precision]


@skip
@pytest.mark.parametrize("architecture", ["qwen2", "bloom"])
def test_greedy_tokens_of_a_ragged_batch_equal_the_rows_alone(tmp_path, architecture):
    """Long enough that decode steps are recorded as a CUDA graph and launched."""
    one = tiny.make(tmp_path, architecture, "CAUSAL_LM")
    engine = ptdeploy.load(compiled(one, tmp_path / "bundle").path)
    rows = [row.tolist() for row in random_rows()]
    together = engine.generate(rows, 24, eos_token_ids=())
    alone = [engine.generate([row], 24, eos_token_ids=())[0] for row in rows]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    talk = engine.session(40)
    talk.append(rows[2])
    assert talk.generate(8, eos_token_ids=()).token_ids == alone[2].token_ids[:8]


@skip
@pytest.mark.parametrize("flavor", FLAVORS)
def test_a_decoders_steps_are_recorded(tmp_path, flavor):
    """Both flavors can; where one could not, its steps would go on plainly and nobody notice."""
    one = tiny.make(tmp_path, "qwen2", "CAUSAL_LM")
    engine = ptdeploy.load(compiled(one, tmp_path / "bundle", flavor).path)
    kv = engine.buffers.take([engine.prompt], [8]).kv
    for _ in range(4):
        kv.decode([7])
    assert kv._decode._graph is not None


@skip
@pytest.mark.parametrize("precision", ["int8", "int4", "fp8"])
def test_quantized_weights_run(tmp_path, precision):
    # Its columns are whole blocks of 64, the smallest that full TensorRT takes.
    one = tiny.make(tmp_path, "qwen2", "CAUSAL_LM", hidden_size=64)
    block = 64 if precision == "int4" else None
    quantization = QuantizationOptions(block_size=block, min_agreement=0, max_perplexity_ratio=9)
    bundle = compiled(one, tmp_path / "bundle", precision=precision, quantization=quantization)
    parity, graph = bundle.manifest.prompt.parity, bundle.manifest.prompt.graph_parity
    assert abs(parity.perplexity_ratio - graph.perplexity_ratio) < 0.02


@skip
def test_threads_share_an_engine(tmp_path):
    one = tiny.make(tmp_path, "qwen2", "CAUSAL_LM")
    engine = ptdeploy.load(compiled(one, tmp_path / "bundle").path)
    rows = [row.tolist() for row in random_rows()]
    want = [engine.generate([row], 16, eos_token_ids=())[0].token_ids for row in rows]
    got: dict[int, list[int]] = {}

    def work(index: int) -> None:
        got[index] = engine.generate([rows[index]], 16, eos_token_ids=())[0].token_ids

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(rows))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(len(rows))] == want


@skip
@pytest.mark.parametrize("flavor", FLAVORS)
def test_an_engine_without_weights_gets_them_from_the_onnx(tmp_path, flavor):
    one = tiny.make(tmp_path, "bert", "SEQ_CLS")
    whole = compiled(one, tmp_path / "whole", flavor)
    stripped = compiled(one, tmp_path / "stripped", flavor, engine={"strip_weights": True})
    assert stripped.file("engine").stat().st_size < whole.file("engine").stat().st_size
    assert ptdeploy.verify(stripped.path).passed


@skip
def test_memory_on_the_gpu_is_read_as_written(tmp_path):
    stream = cuda.Stream()
    array = np.arange(2 * 3 * 5 * 4, dtype=np.float32).reshape(2, 3, 5, 4)
    memory = cuda.place(array, stream)
    new = cuda.place(-np.ones((2, 3, 2, 4), np.float32), stream)
    memory.write_slots(np.array([1, 3]), new)
    array[0, :, 1:3] = -1
    array[1, :, 3:5] = -1
    assert np.array_equal(memory.read(), array)
    assert np.array_equal(memory.rows(slice(1, 2)).read(), array[1:2])


@skip
def test_rebuilt_for_this_gpu_it_is_in_parity(tmp_path):
    one = tiny.make(tmp_path, "qwen2", "CAUSAL_LM")
    bundle = compiled(one, tmp_path / "bundle", engine={"keep_onnx": True})
    again = ptdeploy.rebuild(bundle.path, output=tmp_path / "again")
    assert again.manifest.prompt.parity.passed
    assert ptdeploy.verify(again.path).passed
