"""Whatever bytes a checkpoint's files hold, they are read or refused."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.values import MODEST

from ptdeploy.errors import CheckpointError
from ptdeploy.source.checkpoint.peft_config import read_peft_config
from ptdeploy.source.checkpoint.tensors import read_tensors

CONFIG = st.fixed_dictionaries(
    {},
    optional={
        "peft_type": st.sampled_from(["P_TUNING", "LORA", None, 3]),
        "task_type": st.sampled_from(["SEQ_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM", None, 7, []]),
        "num_virtual_tokens": st.integers(-2, 9) | st.text(max_size=2) | st.none() | st.booleans(),
        "token_dim": st.integers(-2, 9) | st.floats() | st.none(),
        "encoder_reparameterization_type": st.sampled_from(["MLP", "LSTM", "GRU", None, 1]),
        "base_model_name_or_path": st.text(max_size=4) | st.none() | st.integers(),
        "num_transformer_submodules": st.integers(0, 3) | st.none() | st.text(max_size=1),
    },
)


@given(config=CONFIG)
@MODEST
def test_any_adapter_config_is_read_or_refused(tmp_path, config):
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    try:
        read = read_peft_config(tmp_path / "adapter_config.json")
    except CheckpointError:
        return
    assert config["peft_type"] == "P_TUNING"
    assert read.num_virtual_tokens >= 1


@given(content=st.binary(max_size=200), suffix=st.sampled_from([".safetensors", ".bin", ".pt"]))
@MODEST
def test_any_bytes_are_refused_as_tensors(tmp_path, content, suffix):
    file = tmp_path / f"model{suffix}"
    file.write_bytes(content)
    try:
        read_tensors(file)
    except CheckpointError:
        return
    assert suffix == ".safetensors"


def legacy_tar() -> bytes:
    """As torch saved before 0.1.10."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name))
    return content.getvalue()


def saved(value: object) -> bytes:
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (bytes(5000), "not a whole torch file (it starts as no such file does)."),
        (b"<!DOCTYPE html>", "not a whole torch file (it starts as no such file does)."),
        (gzip.compress(b"abc"), "not a whole torch file (it starts as no such file does)."),
        (saved({"w": torch.ones(9)})[:-99], "not a whole torch file (PytorchStreamReader failed"),
        (legacy_tar(), "is in torch's legacy .tar format, which torch unpickles before"),
        (saved({"f": os.system}), f"holds pickled Python objects ({os.name}.system), not only"),
        (pickle.dumps(os.system), "holds pickled Python objects, not only tensors"),
    ],
    ids=["zeros", "a page", "gzip", "half a file", "a tar", "code in a zip", "code"],
)
def test_torchs_advice_to_unpickle_what_it_cannot_read_is_not_passed_on(tmp_path, content, problem):
    file = tmp_path / "adapter_model.bin"
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as refused:
        read_tensors(file)
    assert refused.value.problem.startswith(f"{file}: {problem}")
    assert "weights_only" not in refused.value.problem
    if "holds pickled" not in problem:
        assert "weights_only" not in refused.value.fix


def test_how_to_save_a_legacy_file_anew_is_said(tmp_path):
    file = tmp_path / "model.pt"
    file.write_bytes(legacy_tar())
    with pytest.raises(CheckpointError, match="or as safetensors") as refused:
        read_tensors(file)
    assert "with today's torch.save(state_dict, path)" in refused.value.fix
