"""Models of a real model's shape with random weights, P-Tuned as PEFT does it, saved once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PromptEncoderConfig, get_peft_model

CACHE = Path(__file__).parents[1] / ".cache" / "shapes"


def qwen2_05b(virtual_tokens: int) -> tuple[Path, Path]:
    """Qwen2.5-0.5B's shape: 494 million weights, 2.0 GB in fp32. Gives (base, adapter) folders."""
    config = transformers.Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        use_sliding_window=False,
    )
    return _saved("qwen2-0.5b", config, "CAUSAL_LM", virtual_tokens)


def bert_base(virtual_tokens: int) -> tuple[Path, Path]:
    """BERT-base's shape with four classes: 109 million weights. Gives (base, adapter) folders."""
    return _saved("bert-base", transformers.BertConfig(num_labels=4), "SEQ_CLS", virtual_tokens)


def bert_tiny(virtual_tokens: int) -> tuple[Path, Path]:
    """The same kind so small that a benchmark can be tried on it. Gives (base, adapter) folders."""
    config = transformers.BertConfig(
        vocab_size=4096,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=4,
    )
    return _saved("bert-tiny", config, "SEQ_CLS", virtual_tokens)


def roberta_small(virtual_tokens: int) -> tuple[Path, Path]:
    """RoBERTa's width and two-layer head on six layers: 82 million weights."""
    config = transformers.RobertaConfig(
        vocab_size=50_265,
        num_hidden_layers=6,
        max_position_embeddings=514,
        type_vocab_size=1,
        num_labels=4,
    )
    return _saved("roberta-small", config, "SEQ_CLS", virtual_tokens)


def qwen2_100m(virtual_tokens: int) -> tuple[Path, Path]:
    """Qwen2's kind with 100 million weights. Gives (base, adapter) folders."""
    return _saved("qwen2-100m", _qwen2_100m(), "CAUSAL_LM", virtual_tokens)


def qwen2_tiny(virtual_tokens: int) -> tuple[Path, Path]:
    """The same kind so small that a benchmark can be tried on it. Gives (base, adapter) folders."""
    config = transformers.Qwen2Config(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    return _saved("qwen2-tiny", config, "CAUSAL_LM", virtual_tokens)


def qwen2_classifier(virtual_tokens: int) -> tuple[Path, Path]:
    """The same with four classes. Gives (base, adapter) folders."""
    return _saved("qwen2-classifier", _qwen2_100m(), "SEQ_CLS", virtual_tokens)


def _qwen2_100m() -> transformers.Qwen2Config:
    return transformers.Qwen2Config(
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        num_labels=4,
        pad_token_id=0,
    )


_KINDS = {
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
}


def _saved(name: str, config: Any, task: str, virtual_tokens: int) -> tuple[Path, Path]:
    """Make a shape's base and adapter where they are not there yet."""
    base, adapter = CACHE / name, CACHE / f"{name}-p{virtual_tokens}"
    if not (adapter / "adapter_config.json").exists():
        torch.manual_seed(0)
        model = _KINDS[task].from_config(config).eval()
        if not (base / "config.json").exists():
            model.save_pretrained(base)
        tuned = get_peft_model(
            model,
            PromptEncoderConfig(
                task_type=task,
                num_virtual_tokens=virtual_tokens,
                encoder_hidden_size=128,
                encoder_reparameterization_type="MLP",
            ),
        )
        tuned.save_pretrained(adapter)
    return base, adapter
