"""The C++ library runs bundles of every kind of prompt as Python does, and refuses as that does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from support import kinds, nemo, tiny
from support.damage import edit
from support.native import Probe, bits, opened, text_of
from support.refusals import python_refusal, same_refusal
from support.support_table import placed, with_default
from transformers import AutoModelForSequenceClassification

import ptdeploy
from ptdeploy.bundle import read_bundle
from ptdeploy.bundle.task import Task
from ptdeploy.files import sha256_of

# Every kind on an encoder and a decoder, over the engines that they share; GLM turns half a head.
CELLS = [cell for cell in kinds.CELLS if cell[2] in ("bert", "qwen2")]
CELLS += [("prefix tuning", "CAUSAL_LM", "glm")]
ROWS = [[5, 6, 7], [40], [9, 10, 11, 12, 13, 14, 15, 16], [99, 100]]
PROMPT = "prompts/default/prompt.safetensors"


@pytest.fixture
def of(shared) -> Callable[..., Path]:
    """`of(kind, task, architecture)`: a bundle whose default prompt is of that kind."""
    return lambda *cell: placed(shared, cell)


@pytest.mark.parametrize(("kind", "task", "architecture"), CELLS)
def test_every_kinds_logits_are_pythons_bit_for_bit(of, probe, kind, task, architecture):
    same_answers(probe, of(kind, task, architecture))


def same_answers(probe: Probe, bundle: Path) -> None:
    """C++ gives Python's logits bit for bit, and of a bundle that writes its greedy tokens."""
    engine = opened(probe, bundle)
    for rows in (ROWS, [ROWS[2]], ROWS[::-1]):
        assert probe.ask("logits", "e", text_of(rows)) == [bits(one) for one in engine.logits(rows)]
    if isinstance(engine, ptdeploy.CausalLM):
        ours = engine.generate(ROWS, 20, eos_token_ids=())
        theirs = probe.ask("generate", "e", text_of(ROWS), "max_new_tokens=20 eos_token_ids=")
        assert [one["token_ids"] for one in theirs] == [one.token_ids for one in ours]


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(4).standard_normal(shape, np.float32)


def _bare(*shape: int) -> Callable[[Path, Path], Path]:
    def make(folder: Path, _: Path) -> Path:
        np.save(folder / "p.npy", random(*shape))
        return folder / "p.npy"

    return make


def _nemo(folder: Path, _: Path) -> Path:
    return nemo.table_archive(folder / "p.nemo", "one")[0]


def _p_tuning_v2(folder: Path, base: Path) -> Path:
    """As its authors save it: the whole model's state, of the very base."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=tiny.LABELS)
    table = torch.from_numpy(random(5, 2 * 2 * 32))
    state = {**model.state_dict(), "prefix_encoder.embedding.weight": table}
    torch.save(state, folder / "pytorch_model.bin")
    shutil.copy(base / "config.json", folder)
    return folder / "pytorch_model.bin"


def _chatglm(folder: Path, _: Path) -> Path:
    table = torch.from_numpy(random(5, 2 * 2 * 2 * 8))
    name = "transformer.prefix_encoder.embedding.weight"
    torch.save({name: table}, folder / "pytorch_model.bin")
    sizes = {"num_layers": 2, "num_attention_heads": 4, "kv_channels": 8, "pre_seq_len": 5}
    heads = {"multi_query_attention": True, "multi_query_group_num": 2}
    config = {"model_type": "chatglm", **sizes, **heads}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# What PEFT has no loader for: how it is made, and whose engine runs it.
OTHERS: dict[str, tuple[Callable[[Path, Path], Path], tuple[str, str, str]]] = {
    "virtual tokens": (_bare(5, 32), ("P-Tuning, MLP", "CAUSAL_LM", "qwen2")),
    "prefix KV": (_bare(2, 2, 2, 5, 8), ("P-Tuning, MLP", "CAUSAL_LM", "qwen2")),
    "NeMo": (_nemo, ("P-Tuning, MLP", "CAUSAL_LM", "qwen2")),
    "P-Tuning v2": (_p_tuning_v2, ("prefix tuning", "SEQ_CLS", "bert")),
    "ChatGLM": (_chatglm, ("P-Tuning, MLP", "CAUSAL_LM", "glm")),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_prompt_that_is_no_pefts_answers_as_in_python(shared, probe, tmp_path, name):
    make, (kind, task, architecture) = OTHERS[name]
    engine = shared.compiled(architecture, task, kind=kind)
    pack = ptdeploy.compile_prompt(
        make(tmp_path, engine.trained.base),
        over=engine.bundle,
        base=str(engine.trained.base),
        task=Task(task),
        output=tmp_path / "own.prompt",
    )
    assert pack.manifest.prompt.parity.reference.startswith("transformers ")
    same_answers(probe, with_default(shared, ("no PEFT", name), engine.bundle, pack.path))


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
def test_segments_behind_a_prefix_kv_are_taken(of, probe, task):
    engine = opened(probe, of("prefix tuning", task, "bert"))
    segments = [[0, 1, 1], [1], [0, 0, 0, 0, 1, 1, 1, 1], [1, 1]]
    theirs = probe.ask("logits", "e", text_of(ROWS), text_of(segments))
    assert theirs == [bits(one) for one in engine.logits(ROWS, token_type_ids=segments)]
    assert theirs != probe.ask("logits", "e", text_of(ROWS))


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
def test_a_prefix_on_an_encoder_verifies_with_pythons_numbers(of, probe, task):
    bundle = of("prefix tuning", task, "bert")
    assert probe.ask("open", "v", bundle) == {}
    theirs, ours = probe.ask("verify", "v"), ptdeploy.verify(bundle)
    assert theirs["passed"]
    assert ours.passed
    assert [one["max_abs"] for one in theirs["cases"]] == [one.max_abs for one in ours.cases]


def _another_prefix(bundle: Path) -> None:
    tensors = load_file(bundle / PROMPT)
    tensors["prefix_kv"] = tensors["prefix_kv"] + np.float32(1)
    save_file(tensors, bundle / PROMPT)
    _hash_again(bundle)


def _no_prefix(bundle: Path) -> None:
    tensors = load_file(bundle / PROMPT)
    del tensors["prefix_kv"]
    save_file({"other": np.zeros(1, np.float32), **tensors}, bundle / PROMPT)
    _hash_again(bundle)


def _hash_again(bundle: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        (entry,) = (one for one in manifest["files"] if one["role"] == "prompt")
        entry.update(size=(bundle / PROMPT).stat().st_size, sha256=sha256_of(bundle / PROMPT))

    edit(bundle, change)


def _of_prompt(**fields: Any) -> Callable[[Path], None]:
    return lambda bundle: edit(bundle, lambda m: m["prompts"]["default"].update(fields))


def _of_source(**fields: Any) -> Callable[[Path], None]:
    return lambda bundle: edit(bundle, lambda m: m["prompts"]["default"]["source"].update(fields))


def _of_limits(**fields: Any) -> Callable[[Path], None]:
    return lambda bundle: edit(bundle, lambda m: m["limits"].update(fields))


@pytest.mark.parametrize("task", ["SEQ_CLS", "CAUSAL_LM"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_another_prefix, "its prefix KV is not that of prompt.sha256"),
        (_no_prefix, "holds no prefix KV"),
        (_of_prompt(token_dim=32, padding_id=None), "holds no virtual tokens"),
        (_of_prompt(token_dim=32, padding_id=0), "padding_id is for a trained prefix KV, which it"),
        (_of_prompt(padding_id=101), "padding_id must be from 0 to 100"),
        (_of_prompt(padding_id=-1), "padding_id must be from 0 to 100"),
        (_of_prompt(padding_id="0"), "Expected `int | null`, got `str`"),
        (_of_prompt(token_dim=0), "token_dim must be from 1 to"),
        (_of_prompt(token_dim="32"), "Expected `int | null`, got `str`"),
        (_of_prompt(prefix_kv=None), "token_dim and prefix_kv are both null"),
        (_of_prompt(num_virtual_tokens=6), "prefix_kv is not the shape"),
        (_of_source(task_id="1"), "Expected `int | null`, got `str`"),
        (_of_source(task_id=True), "Expected `int | null`, got `bool`"),
        (_of_limits(type_vocab_size=2), "its limits have segments, but its signature takes none"),
    ],
)
def test_a_damaged_prefix_is_refused_in_pythons_words(of, probe, tmp_path, task, damage, reason):
    bundle = Path(shutil.copytree(of("prefix tuning", task, "qwen2"), tmp_path / "bundle"))
    damage(bundle)
    theirs, ours = probe.ask("open", "d", bundle), python_refusal(bundle)
    assert reason in theirs["problem"]
    # What cannot be read in a file is said by another library in each.
    assert same_refusal(theirs, ours, "holds no" not in reason), (theirs, ours)


@pytest.mark.parametrize("task_id", [None, 0, 7])
def test_the_task_of_a_multitask_prompt_may_be_any(of, probe, tmp_path, task_id):
    bundle = of("multitask prompt tuning", "SEQ_CLS", "bert")
    assert read_bundle(bundle).manifest.prompt.source.task_id == kinds.TASK_ID
    bundle = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    _of_source(task_id=task_id)(bundle)
    opened(probe, bundle)
