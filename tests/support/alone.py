"""The reference of most tests: PEFT on PyTorch, one unpadded row at a time."""

from __future__ import annotations

import numpy as np
import torch
from support import tiny

DECODERS = ("gpt2", "qwen2", "llama", "mistral", "opt", "bloom")
SUPPORTED = [
    *((architecture, task) for architecture in tiny.ENCODERS for task in ("SEQ_CLS", "TOKEN_CLS")),
    *((architecture, "CAUSAL_LM") for architecture in DECODERS),
    *(
        (architecture, task)
        for architecture in ("gpt2", "qwen2")
        for task in ("SEQ_CLS", "TOKEN_CLS")
    ),
]
NEAR = 1e-5
LENGTHS = (1, 2, 5, 9, 16, 23, 3, 12)


def random_rows(seed: int = 7) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, tiny.VOCABULARY, length) for length in LENGTHS]


def peft_alone(model, row: np.ndarray, task: str) -> np.ndarray:
    """PEFT's logits for one unpadded row, without those of the virtual tokens."""
    ids = torch.from_numpy(row)[None]
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    return (logits if task == "SEQ_CLS" else logits[-row.size :]).numpy()
