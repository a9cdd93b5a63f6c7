"""The C++ library runs bundles of every kind of prompt as Python does, and refuses as that does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import kinds
from support.damage import edit
from support.native import bits, opened, text_of
from support.refusals import python_refusal, same_refusal

import ptdeploy
from ptdeploy.bundle import read_bundle
from ptdeploy.files import sha256_of

CELLS = [cell for cell in kinds.CELLS if cell[2] in ("bert", "qwen2")]
ROWS = [[5, 6, 7], [40], [9, 10, 11, 12, 13, 14, 15, 16], [99, 100]]
PROMPT = "prompts/default/prompt.safetensors"


@pytest.fixture
def of(compiled) -> Callable[..., Path]:
    def get(kind: str, task: str, architecture: str) -> Path:
        return compiled(architecture, task, kinds.options(kind), kind=kind).bundle

    return get


@pytest.mark.parametrize(("kind", "task", "architecture"), CELLS)
def test_every_kinds_logits_are_pythons_bit_for_bit(of, probe, kind, task, architecture):
    engine = opened(probe, of(kind, task, architecture))
    for rows in (ROWS, [ROWS[2]], ROWS[::-1]):
        assert probe.ask("logits", "e", text_of(rows)) == [bits(one) for one in engine.logits(rows)]
    if task == "CAUSAL_LM":
        ours = engine.generate(ROWS, 20, eos_token_ids=())
        theirs = probe.ask("generate", "e", text_of(ROWS), "max_new_tokens=20 eos_token_ids=")
        assert [one["token_ids"] for one in theirs] == [one.token_ids for one in ours]


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
        (_of_prompt(token_dim=32), "holds no virtual tokens"),
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
