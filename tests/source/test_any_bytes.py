"""Whatever bytes a checkpoint's files hold, they are read or refused."""

from __future__ import annotations

import json

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
