"""Tiny random models, P-Tuned as PEFT does it, saved to disk: what most tests compile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel, PromptEncoderConfig, get_peft_model

VOCABULARY = 101
LABELS = 3

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
}
_AUTO = {
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
}


@dataclass(frozen=True)
class Trained:
    """A P-Tuned model, live and saved: `base` and `adapter` are folders."""

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
    virtual_tokens: int = 5,
    seed: int = 0,
    jitter: bool = False,
    **changes: Any,
) -> Trained:
    """Build a random model, wrap it with PEFT's P-Tuning, and save base and adapter.

    With `jitter` biases and norms are random too, as in a trained model, not all zeros and ones.
    """
    torch.manual_seed(seed)
    base = _AUTO[task].from_config(base_config(architecture, **changes)).eval()
    if jitter:
        with torch.no_grad():
            for parameter in base.parameters():
                if parameter.dim() == 1:
                    parameter += 0.2 * torch.randn_like(parameter)
    base.save_pretrained(folder / "base")
    model = get_peft_model(
        base,
        PromptEncoderConfig(
            task_type=task,
            num_virtual_tokens=virtual_tokens,
            token_dim=32,
            num_layers=2,
            num_attention_heads=4,
            encoder_hidden_size=24,
            encoder_reparameterization_type=encoder,
        ),
    ).eval()
    for parameter in model.prompt_encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder / "adapter")
    return Trained(model, folder / "base", folder / "adapter")
