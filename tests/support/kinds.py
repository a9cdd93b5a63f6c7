"""Every kind of prompt that PEFT trains: how a tiny one is made, and what is shown of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import peft

TASKS = 3
# What a compilation of a multitask prompt must be told besides.
TASK_ID = 1


def _width(model: Any) -> dict[str, Any]:
    # These kinds ignore the two counts, but PEFT refuses bases whose config names them otherwise.
    width = model.get_input_embeddings().weight.shape[1]
    return {"token_dim": width, "num_layers": 2, "num_attention_heads": 4}


def _p_tuning(encoder: str) -> Callable[..., Any]:
    def config(model: Any, **common: Any) -> Any:
        return peft.PromptEncoderConfig(
            **common,
            **_width(model),
            encoder_hidden_size=24,
            encoder_reparameterization_type=encoder,
        )

    return config


def _prompt_tuning(model: Any, **common: Any) -> Any:
    return peft.PromptTuningConfig(**common, **_width(model))


def _multitask(model: Any, **common: Any) -> Any:
    return peft.MultitaskPromptTuningConfig(**common, **_width(model), num_tasks=TASKS, num_ranks=2)


def _cpt(model: Any, num_virtual_tokens: int, **common: Any) -> Any:
    places = list(range(num_virtual_tokens))
    return peft.CPTConfig(
        **common,
        cpt_token_ids=[5 + place for place in places],
        cpt_mask=[1] * len(places),
        cpt_tokens_type_mask=[1 + place % 4 for place in places],
    )


def _prefix(model: Any, **common: Any) -> Any:
    return peft.PrefixTuningConfig(**common, **_sizes(model))


def _projected_prefix(model: Any, **common: Any) -> Any:
    projection = {"prefix_projection": True, "encoder_hidden_size": 16}
    return peft.PrefixTuningConfig(**common, **_sizes(model), **projection)


def _cartridge(model: Any, **common: Any) -> Any:
    return peft.CartridgeConfig(**common, **_sizes(model), num_frozen_tokens=1)


def _sizes(model: Any) -> dict[str, Any]:
    # PEFT takes them from the base's config, and does not know the names in DistilBERT's.
    return _width(model) if model.config.model_type == "distilbert" else {}


# By the names that docs/support.md has.
KINDS: dict[str, Callable[..., Any]] = {
    "P-Tuning, MLP": _p_tuning("MLP"),
    "P-Tuning, LSTM": _p_tuning("LSTM"),
    "prompt tuning": _prompt_tuning,
    "multitask prompt tuning": _multitask,
    "CPT": _cpt,
    "prefix tuning": _prefix,
    "prefix tuning, projected": _projected_prefix,
    "cartridge": _cartridge,
}
# Kinds that are a prefix KV, and have no virtual tokens.
PREFIXES = ("prefix tuning", "prefix tuning, projected", "cartridge")


def options(kind: str) -> dict[str, Any]:
    """What ptdeploy.compile must be told of a kind's checkpoint."""
    return {"task_id": TASK_ID} if kind == "multitask prompt tuning" else {}


_ENCODERS = ("bert", "roberta", "electra", "distilbert", "albert", "deberta", "deberta-v2")
# Encoders that take no keys and values before a text, so no prompt that is a prefix KV.
_WITHOUT_PREFIX = ("distilbert", "albert", "deberta", "deberta-v2")
# Learned and rotary positions, positions from an offset on, slopes in their place, grouped queries,
# sliding windows, partial rotation.
_DECODERS = {
    "SEQ_CLS": ("gpt2", "qwen2", "mistral", "opt", "bloom"),
    "TOKEN_CLS": ("gpt2", "qwen2"),
    "CAUSAL_LM": (
        "gpt2",
        "qwen2",
        "llama",
        "mistral",
        "gemma2",
        "gemma3",
        "phi3",
        "opt",
        "bloom",
        "gpt_neox",
        "glm",
    ),
}
# The kinds that PEFT trains for one task alone.
_ONLY = {"CPT": "CAUSAL_LM"}


def _cells() -> Iterator[tuple[str, str, str]]:
    for kind in KINDS:
        for task in ("SEQ_CLS", "TOKEN_CLS", "CAUSAL_LM"):
            if _ONLY.get(kind, task) == task:
                encoders = () if task == "CAUSAL_LM" else _ENCODERS
                for architecture in (*encoders, *_DECODERS[task]):
                    yield kind, task, architecture


def engine_of(kind: str, task: str, architecture: str) -> str:
    """The kind whose bundle has the engine that a cell's prompt runs on.

    An engine holds no prompt, but where virtual tokens are run it takes no keys and values instead.
    """
    runs_tokens = task == "TOKEN_CLS" or (task == "SEQ_CLS" and architecture in _ENCODERS)
    return "prefix tuning" if runs_tokens and kind in PREFIXES else "P-Tuning, MLP"


def _is_refused(cell: tuple[str, str, str]) -> bool:
    return cell[0] in PREFIXES and cell[2] in _WITHOUT_PREFIX


def on_openvino(architecture: str) -> str:
    """The column of an architecture whose bundles OpenVINO runs."""
    return f"{architecture} on openvino"


# OpenVINO runs ONNX Runtime's graphs, with another attention where they write.
_ON_OPENVINO = {"SEQ_CLS": ("bert",), "TOKEN_CLS": (), "CAUSAL_LM": ("qwen2",)}
# Kind, task and architecture of each that docs/support.md shows a figure of.
CELLS = tuple(cell for cell in _cells() if not _is_refused(cell))
# And kind, task and column of those that OpenVINO runs.
OPENVINO = tuple(
    (kind, task, on_openvino(architecture))
    for kind, task, architecture in CELLS
    if architecture in _ON_OPENVINO[task]
)
MEASURED = (*CELLS, *OPENVINO)
# And of each that it says is refused.
REFUSED = tuple(cell for cell in _cells() if _is_refused(cell))
