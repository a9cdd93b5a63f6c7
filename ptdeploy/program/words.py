"""Virtual tokens as vocabulary: ids behind the model's own, looked up in a table that is an input.

A row is then its prompt's ids and its text's, and rows with prompts of other lengths differ in
their padding alone.
"""

from __future__ import annotations

import torch
from torch import nn


def embed(
    embeddings: nn.Module, vocabulary: int, ids: torch.Tensor, table: torch.Tensor
) -> torch.Tensor:
    """Embeddings of ids (batch, sequence): the model's own below `vocabulary`, then the table's.

    `table` is (virtual tokens of all prompts, width). Gives (batch, sequence, width).
    """
    text: torch.Tensor = embeddings(ids.clamp(max=vocabulary - 1))
    virtual = table[(ids - vocabulary).clamp(min=0)]
    return torch.where((ids < vocabulary)[..., None], text, virtual)
