"""Tiny random models with a prompt as PEFT trains it, saved to disk: what most tests compile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel, get_peft_model
from support.kinds import KINDS

VOCABULARY = 101
LABELS = 3

_GROUPED: dict[str, Any] = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}
_DISENTANGLED = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "relative_attention": True,
    "pos_att_type": "c2p|p2c",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
_SHAPES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "bert": (
        transformers.BertConfig,
        {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    ),
    "distilbert": (
        transformers.DistilBertConfig,
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    ),
    "electra": (
        transformers.ElectraConfig,
        {
            "embedding_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
        },
    ),
    "roberta": (
        transformers.RobertaConfig,
        {
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "type_vocab_size": 1,
            "pad_token_id": 1,
        },
    ),
    "albert": (
        transformers.AlbertConfig,
        {
            "embedding_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
        },
    ),
    "deberta": (transformers.DebertaConfig, _DISENTANGLED),
    # Distances of more than 8 tokens are in buckets.
    "deberta-v2": (
        transformers.DebertaV2Config,
        {
            **_DISENTANGLED,
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
        },
    ),
    "gpt2": (transformers.GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "qwen2": (
        transformers.Qwen2Config,
        {
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
        },
    ),
    "llama": (
        transformers.LlamaConfig,
        {
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
        },
    ),
    "mistral": (
        transformers.MistralConfig,
        {
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
            "sliding_window": 48,
        },
    ),
    "opt": (
        transformers.OPTConfig,
        {
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 64,
            "word_embed_proj_dim": 32,
        },
    ),
    "bloom": (transformers.BloomConfig, {"n_layer": 2, "n_head": 4}),
    "gemma2": (
        transformers.Gemma2Config,
        {
            **_GROUPED,
            "head_dim": 8,
            "sliding_window": 12,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        transformers.Gemma3TextConfig,
        {
            **_GROUPED,
            "head_dim": 8,
            "sliding_window": 12,
            "sliding_window_pattern": 2,
            "query_pre_attn_scalar": 24,
        },
    ),
    "qwen3": (transformers.Qwen3Config, {**_GROUPED, "head_dim": 8}),
    "olmo2": (transformers.Olmo2Config, _GROUPED),
    "smollm3": (transformers.SmolLM3Config, _GROUPED),
    "phi": (transformers.PhiConfig, {**_GROUPED, "partial_rotary_factor": 0.5}),
    "phi3": (transformers.Phi3Config, {**_GROUPED, "original_max_position_embeddings": 64}),
    "nemotron": (transformers.NemotronConfig, {**_GROUPED, "partial_rotary_factor": 0.5}),
    "stablelm": (transformers.StableLmConfig, {**_GROUPED, "partial_rotary_factor": 0.25}),
    "glm": (transformers.GlmConfig, {**_GROUPED, "head_dim": 8}),
    "glm4": (transformers.Glm4Config, {**_GROUPED, "head_dim": 8}),
    "gpt_neox": (
        transformers.GPTNeoXConfig,
        {
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "rotary_pct": 0.5,
        },
    ),
    "gptj": (transformers.GPTJConfig, {"n_layer": 2, "n_head": 4, "rotary_dim": 4}),
    "cohere2": (
        transformers.Cohere2Config,
        {
            **_GROUPED,
            "sliding_window": 12,
            "sliding_window_pattern": 2,
            "logit_scale": 0.5,
        },
    ),
    "gpt_bigcode": (transformers.GPTBigCodeConfig, {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "gpt_neo": (
        transformers.GPTNeoConfig,
        {
            "num_layers": 2,
            "num_heads": 4,
            "intermediate_size": 64,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 12,
        },
    ),
    "falcon": (transformers.FalconConfig, {"num_hidden_layers": 2, "num_attention_heads": 4}),
    "mpt": (
        transformers.MptConfig,
        {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    ),
    "mixtral": (
        transformers.MixtralConfig,
        {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "phimoe": (
        transformers.PhimoeConfig,
        {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 12},
    ),
    "gpt_oss": (
        transformers.GptOssConfig,
        {
            **_GROUPED,
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 24,
        },
    ),
    "llama4": (
        transformers.Llama4TextConfig,
        {
            **_GROUPED,
            "head_dim": 8,
            "num_hidden_layers": 4,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 64,
            "attention_chunk_size": 16,
        },
    ),
    "deepseek_v3": (
        transformers.DeepseekV3Config,
        {
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 64,
            "moe_intermediate_size": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
    "mamba": (transformers.MambaConfig, {"num_hidden_layers": 2, "state_size": 8}),
    "lfm2": (
        transformers.Lfm2Config,
        {**_GROUPED, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3},
    ),
    "recurrent_gemma": (
        transformers.RecurrentGemmaConfig,
        {**_GROUPED, "lru_width": 32, "head_dim": 8, "block_types": ["recurrent", "attention"]},
    ),
}
ARCHITECTURES = tuple(_SHAPES)
ENCODERS = ("bert", "distilbert", "electra", "roberta", "albert", "deberta", "deberta-v2")
_AUTO = {
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
}


@dataclass(frozen=True)
class Trained:
    """A model with a trained prompt, live and saved: `base` and `adapter` are folders."""

    model: PeftModel
    base: Path
    adapter: Path


def base_config(architecture: str, **changes: Any) -> Any:
    """A configuration of width 32, 64 positions and 101 tokens."""
    kind, shape = _SHAPES[architecture]
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "max_position_embeddings": 64,
        "num_labels": LABELS,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 2,
        # Small initial weights make near-uniform logits, which would hide faults.
        "initializer_range": 0.2,
    }
    return kind(**{**common, **shape, **changes})


def make(
    folder: Path,
    architecture: str,
    task: str,
    encoder: str = "MLP",
    kind: str = "",
    virtual_tokens: int = 5,
    seed: int = 0,
    saved_as: torch.dtype = torch.float32,
    jitter: bool = False,
    **changes: Any,
) -> Trained:
    """Build a random model, give it a prompt of a kind of PEFT's, and save base and adapter.

    The kind is one of support.kinds, P-Tuning with `encoder` unless told.
    The base is saved as `saved_as`; the live model is float32 of the same values. With `jitter`
    biases and norms are random too, as in a trained model, not all zeros and ones.
    """
    torch.manual_seed(seed)
    base = _AUTO[task].from_config(base_config(architecture, **changes)).eval()
    if jitter:
        with torch.no_grad():
            for parameter in base.parameters():
                if parameter.dim() == 1:
                    parameter += 0.2 * torch.randn_like(parameter)
    base.config.dtype = saved_as
    for parameter in base.parameters():
        parameter.data = parameter.data.to(saved_as).float()
    state = {name: tensor.to(saved_as) for name, tensor in base.state_dict().items()}
    base.save_pretrained(folder / "base", state_dict=state)
    model = tune(base, folder, task, kind or f"P-Tuning, {encoder}", virtual_tokens)
    return Trained(model, folder / "base", folder / "adapter")


def another(
    folder: Path,
    trained: Trained,
    task: str,
    virtual_tokens: int,
    labels: int,
    seed: int,
    kind: str = "P-Tuning, MLP",
) -> Trained:
    """Another prompt over the base of a trained model, with a head of its own."""
    torch.manual_seed(seed)
    base = _AUTO[task].from_pretrained(
        trained.base, num_labels=labels, ignore_mismatched_sizes=True
    )
    model = tune(base.eval(), folder, task, kind, virtual_tokens)
    return Trained(model, trained.base, folder / "adapter")


def tuned(base: Any, folder: Path, task: str, kind: str = "prompt tuning") -> Trained:
    """Save a model of its own making as the base, and give it a prompt of 5 virtual tokens."""
    base.eval().save_pretrained(folder / "base")
    return Trained(tune(base, folder, task, kind, 5), folder / "base", folder / "adapter")


def tune(base: Any, folder: Path, task: str, kind: str, virtual_tokens: int) -> PeftModel:
    """Give a model a prompt of one of support.kinds, and save the adapter."""
    told = KINDS[kind](base, task_type=task, num_virtual_tokens=virtual_tokens)
    model: PeftModel = get_peft_model(base, told).eval()
    for parameter in model.prompt_encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder / "adapter")
    return model
