"""Over a paged KV cache OpenVINO writes what ONNX Runtime does over a dense one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.openvino import copied

import ptdeploy
from ptdeploy.backends.openvino.kv_cache import BlockCache
from ptdeploy.bundle import read_bundle
from ptdeploy.cli.main import main
from ptdeploy.runtime.dense_kv import DenseKV
from ptdeploy.runtime.joined import offsets_of
from ptdeploy.runtime.paged_kv import PagedKV
from ptdeploy.targets import Attention, get_target
from ptdeploy.targets.onnx_model import run_with_inner

if importlib.util.find_spec("openvino") is None:
    pytest.skip("openvino is not installed", allow_module_level=True)

ARCHITECTURES = ["gpt2", "qwen2", "llama", "mistral", "opt", "mixtral"]
ROWS = [[5, 6, 7, 8, 9], [40, 41], [60], list(range(3, 30))]
ROOM = {"max_position_embeddings": 700}
NEAR = 1e-5


def pair(bundle: Path, folder: Path) -> tuple[ptdeploy.CausalLM, ptdeploy.CausalLM]:
    """OpenVINO's engine of a bundle's graph, and ONNX Runtime's."""
    return ptdeploy.load(copied(bundle, folder / "paged")), ptdeploy.load(bundle)


@pytest.fixture
def engines(compiled, tmp_path) -> tuple[ptdeploy.CausalLM, ptdeploy.CausalLM]:
    return pair(compiled("qwen2", "CAUSAL_LM").bundle, tmp_path)


def tokens(engine: ptdeploy.CausalLM, rows=ROWS, count: int = 20) -> list[list[int]]:
    return [one.token_ids for one in engine.generate(rows, count, eos_token_ids=())]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_writes_what_onnx_runtime_writes(compiled, tmp_path, architecture):
    ours, theirs = pair(compiled(architecture, "CAUSAL_LM").bundle, tmp_path)
    for one, other in zip(ours.logits(ROWS), theirs.logits(ROWS), strict=True):
        assert np.abs(one - other).max() < NEAR * (1 + np.abs(other).max())
    assert tokens(ours) == tokens(theirs)
    # Each row as if it were alone.
    assert [tokens(ours, [row])[0] for row in ROWS] == tokens(ours)


def test_a_prompt_that_is_run_goes_in_front(compiled, tmp_path):
    bundle = compiled("qwen2", "CAUSAL_LM", {"freeze_kv": False}).bundle
    ours, theirs = pair(bundle, tmp_path)
    assert tokens(ours) == tokens(theirs)


def test_sessions_go_on_roll_back_and_fork(engines):
    def story(engine: ptdeploy.CausalLM) -> list[list[int]]:
        talk = engine.session()
        talk.append([5, 6, 7])
        first = talk.generate(4, eos_token_ids=()).token_ids
        other = talk.fork()
        other.append([9, 8])
        forked = other.generate(5, eos_token_ids=()).token_ids
        talk.rollback(2)
        talk.append([30])
        return [first, forked, talk.generate(5, eos_token_ids=()).token_ids]

    ours, theirs = engines
    assert story(ours) == story(theirs)


def buffers(compiled, tmp_path, prefix: int, rows: int, slots: int) -> tuple[PagedKV, DenseKV]:
    """A paged and a dense buffer behind the same random prefix."""
    ours, theirs = pair(compiled("qwen2", "CAUSAL_LM", **ROOM).bundle, tmp_path)
    return behind(ours, theirs, [prefix_kv(theirs, prefix)] * rows, slots)


def prefix_kv(engine: ptdeploy.CausalLM, tokens: int) -> np.ndarray:
    """A random one of so many virtual tokens."""
    layers, two, heads, _, width = engine.prompt.prefix_kv.shape
    random = np.random.default_rng(tokens)
    return random.normal(size=(layers, two, heads, tokens, width)).astype(np.float32)


def behind(
    ours: ptdeploy.CausalLM, theirs: ptdeploy.CausalLM, prefixes: list[Any], slots: int
) -> tuple[PagedKV, DenseKV]:
    """A paged and a dense buffer of rows behind these prefixes."""
    paged = PagedKV(ours._session, ours.layout, prefixes, slots, {}, ours._session.cache)
    return paged, DenseKV(theirs._session, theirs.layout, prefixes, slots, {})


@pytest.mark.parametrize("prefix", [1, 31, 32, 33, 64, 70])
def test_full_blocks_of_a_prefix_lie_once(compiled, tmp_path, prefix):
    paged, dense = buffers(compiled, tmp_path, prefix, 3, 128)
    shared = prefix // 32
    assert (paged.tables[:, :shared] == np.arange(shared)).all()
    own = paged.tables[:, shared:]
    assert len(np.unique(own)) == own.size
    assert paged.tables.max() + 1 == shared + own.size == paged._caches["key_cache.0"].shape[0]
    rows = [np.arange(3, 40), np.array([5]), np.arange(10, 21)]
    for _ in range(2):
        ours, theirs = paged.prefill_all(rows), dense.prefill_all(rows)
        for one, other in zip(ours, theirs, strict=True):
            assert np.abs(one - other).max() < NEAR * (1 + np.abs(other).max())
        for step in range(5):
            ours, theirs = paged.decode([step, 7, 9]), dense.decode([step, 7, 9])
            assert np.abs(ours - theirs).max() < NEAR * (1 + np.abs(theirs).max())
        assert (paged.lengths == dense.lengths).all()
        # What a row wrote is forgotten, and the prefix is whole.
        paged.reset()
        dense.reset()


def test_rows_behind_several_prefixes_share_what_each_fills(compiled, tmp_path):
    ours, theirs = pair(compiled("qwen2", "CAUSAL_LM", **ROOM).bundle, tmp_path)
    long, short = prefix_kv(theirs, 70), prefix_kv(theirs, 33)
    paged, dense = behind(ours, theirs, [long, short, None, long], 128)
    assert (paged.tables[0, :2] == paged.tables[3, :2]).all()
    # 2 blocks of the long one, 1 of the short one, and what is each row's own.
    own = [paged.tables[0, 2:], paged.tables[1, 1:], paged.tables[2], paged.tables[3, 2:]]
    assert len(np.unique(paged.tables)) == 2 + 1 + sum(map(len, own))
    rows = [np.arange(3, 40), np.array([5]), np.arange(10, 21), np.arange(3, 40)]
    for prefixes in (
        None,
        [long, short, None, long],
        [long, long, long, short],
        [short, short, short, short],
    ):
        if prefixes is not None:
            assert paged.begin(prefixes, {})
            assert dense.begin(prefixes, {})
        written_alike(paged, dense, rows)
    # Four prefixes share nothing: they need more blocks than there are.
    assert not paged.begin([None, None, None, None], {})


def written_alike(paged: PagedKV, dense: DenseKV, rows: list[np.ndarray]) -> None:
    def near(ours: Any, theirs: Any) -> bool:
        return bool(np.abs(ours - theirs).max() < NEAR * (1 + np.abs(theirs).max()))

    assert all(map(near, paged.prefill_all(rows), dense.prefill_all(rows)))
    for step in range(3):
        tokens = [step, 7, 9, 11]
        assert near(paged.decode(tokens), dense.decode(tokens))
    assert (paged.lengths == dense.lengths).all()


@pytest.mark.parametrize(("architecture", "task"), [("qwen2", "CAUSAL_LM"), ("bert", "SEQ_CLS")])
def test_a_row_of_a_mixed_batch_is_what_it_is_alone(siblings, architecture, task):
    one = siblings(architecture, task, options={"target": "openvino"})
    names = ["long", "default", "short", None if task == "CAUSAL_LM" else "long"]
    for ids, name, logits in zip(
        ROWS, names, one.engine().logits(ROWS[:4], prompt=names), strict=False
    ):
        wanted = one.alone(ids, name)
        assert np.abs(logits - wanted).max() < NEAR * (1 + np.abs(wanted).max())


def test_rows_of_unequal_length_run_together(compiled, tmp_path, monkeypatch):
    paged, dense = buffers(compiled, tmp_path, 5, 4, 640)
    sizes: list[int] = []
    run = paged._session.run

    def counted(inputs):
        sizes.append(len(inputs[paged._layout.ids]))
        return run(inputs)

    monkeypatch.setattr(paged._session, "run", counted)
    paged.prefill_all([np.array(row) for row in ROWS])
    assert sizes == [sum(map(len, ROWS))]
    # No pass is longer than the engine takes.
    paged.reset()
    sizes.clear()
    long = [np.arange(n) % 90 for n in (400, 3, 600, 20)]
    ours, theirs = paged.prefill_all(long), dense.prefill_all(long)
    assert sizes == [512, 511]
    for one, other in zip(ours, theirs, strict=True):
        assert np.abs(one - other).max() < NEAR * (1 + np.abs(other).max())


def test_a_row_is_copied_over_to_another_buffer(compiled, tmp_path):
    paged, _ = buffers(compiled, tmp_path, 40, 3, 128)
    paged.prefill_all([np.arange(3, 40), np.array([5]), np.arange(10, 21)])
    other = PagedKV(paged._session, paged._layout, [None], 128, {}, BlockCache())
    other.copy_row(0, paged, 2)
    want = paged.decode([7, 7, 7])[2]
    assert np.abs(other.decode([7])[0] - want).max() < NEAR * (1 + np.abs(want).max())


def test_what_overflowed_is_not_kept(engines):
    ours, _ = engines
    kv = ours.buffers.take([ours.prompt], [8]).kv
    for name in kv._caches:
        kv._caches[name][...] = np.nan
    kv.prefill(0, np.array([5, 6]))
    assert not kv.is_sound


def test_inner_values_have_the_shapes_of_the_graph(compiled, tmp_path, engines):
    ours, theirs = engines
    path = theirs.bundle.path / "model.onnx"
    kinds = ("MatMul", "SkipSimplifiedLayerNormalization", "GroupQueryAttention", "Mul")
    nodes = onnx.load(path, load_external_data=False).graph.node
    inner = tuple(node.output[0] for node in nodes if node.op_type in kinds)
    for rows in (ROWS[:1], ROWS):
        arrays = [np.array(row) for row in rows]
        feed = ours.feed(arrays, [np.zeros_like(row) for row in arrays], 0).feed
        found = get_target("openvino").run_graph(ours.bundle, inner, feed)
        places = offsets_of([feed[ours.layout.ids].shape[1]])
        wanted = run_with_inner(path, inner, {**feed, theirs.layout.offsets: places})
        assert len(found.keys() & set(inner)) > 0.8 * len(inner)
        for name in found.keys() & wanted.keys():
            assert found[name].shape == wanted[name].shape, name
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-4)


def test_a_compilation_is_verified_and_located(compiled, capsys):
    one = compiled("qwen2", "CAUSAL_LM", {"target": "openvino"})
    assert read_bundle(one.bundle).manifest.prompt.parity.passed
    checkpoint = [str(one.trained.adapter), "--base", str(one.trained.base)]
    assert main(["verify", str(one.bundle), "--checkpoint", *checkpoint, "--locate"]) == 0
    assert "every module agrees" in capsys.readouterr().out


def test_a_fault_in_a_decoder_is_located(compiled, tmp_path):
    one = compiled("qwen2", "CAUSAL_LM")
    module = "model.layers.1.mlp.act_fn"

    def change(model: onnx.ModelProto) -> None:
        (node,) = [n for n in model.graph.node if n.name == f"{module}/Sigmoid"]
        node.op_type = "Tanh"

    report = ptdeploy.verify(
        copied(one.bundle, tmp_path / "wrong", change),
        checkpoint=one.trained.adapter,
        base=str(one.trained.base),
        locate=True,
    )
    assert not report.passed
    assert report.located.module == module


def test_what_paged_attention_leaves_out_is_refused_by_name(compiled, tmp_path, capsys):
    target = get_target("openvino")
    assert target.refuses("cpu", "float32", Attention(4, 2, 8, window=4)) == ""
    assert "no soft cap" in target.refuses("cpu", "float32", Attention(4, 2, 8, softcap=2.0))
    assert "sinks" in target.refuses("cpu", "float32", Attention(4, 2, 8, sinks=True))
    one = compiled("bloom", "CAUSAL_LM")
    line = ["compile", str(one.trained.adapter), "--base", str(one.trained.base)]
    assert main([*line, "--target", "openvino", "-o", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert "bloom: the target keeps a KV buffer only for attention that is one operator" in error
    assert "--target ort" in error


def test_several_threads_write_at_once(engines):
    ours, _ = engines
    want = [tokens(ours, [row]) for row in ROWS]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(3):
            if tokens(ours, [ROWS[number]]) != want[number]:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(ROWS))]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []


def test_a_forked_process_writes_on(engines):
    code = """
import os, signal, sys
import ptdeploy
engine = ptdeploy.load(sys.argv[1], threads=2)
talk = engine.session()
talk.append([5, 6, 7])
talk.generate(3, eos_token_ids=())
read, write = os.pipe()
if not os.fork():
    signal.alarm(100)
    os.write(write, repr(talk.generate(4, eos_token_ids=()).token_ids).encode())
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
assert os.read(read, 1000).decode() == repr(talk.generate(4, eos_token_ids=()).token_ids)
"""
    line = [sys.executable, "-c", code, str(engines[0].bundle.path)]
    assert subprocess.run(line, check=False, timeout=240).returncode == 0


def test_a_decoder_is_profiled_and_shows_its_attention(engines, capsys):
    bundle = str(engines[0].bundle.path)
    assert main(["profile", bundle, "--rounds", "3", "--tokens", "8", "--batch", "2"]) == 0
    shown = capsys.readouterr().out
    assert "prefill of 1 row of 8 tokens" in shown
    assert "decode step of 2 rows" in shown
    assert main(["inspect", bundle, "--layers"]) == 0
    assert "PagedAttention" in capsys.readouterr().out


def test_a_kv_buffer_is_a_cpus(engines):
    target = get_target("openvino")
    assert target.no_kv_buffer("cpu") is None
    for device in ("gpu", "npu"):
        problem, fix = target.no_kv_buffer(device)
        assert f"on cpu only, not on {device}" in problem
        assert "--target ort" in fix
        # Whatever OpenVINO finds: a bundle that was compiled for a CPU opens there alone.
        with pytest.raises(ptdeploy.TargetUnavailable) as refused:
            ptdeploy.load(engines[0].bundle.path, device=device)
        assert (refused.value.problem, refused.value.fix) == (problem, fix.replace("--", "", 1))
