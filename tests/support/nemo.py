"""`.nemo` archives as NeMo's prompt learning writes them, of modules with NeMo's own names."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

TOKENS, WIDTH = 5, 32
CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"


class PromptEmbedding(nn.Module):
    """As in nemo/collections/nlp/modules/common/prompt_table.py."""

    def __init__(self, tokens: int = TOKENS) -> None:
        super().__init__()
        self.prompt_embeddings = nn.Embedding(tokens, WIDTH)
        self.register_buffer("indices", torch.arange(tokens))


class PromptTable(nn.Module):
    """As in the same file: an embedding for each task."""

    def __init__(self, *tasks: str) -> None:
        super().__init__()
        self.prompt_table = nn.ModuleDict({task: PromptEmbedding() for task in tasks})


class TPMLP(nn.Module):
    """As in nemo/collections/nlp/modules/common/prompt_encoder.py."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))
        return self.second(x)


class PromptEncoder(nn.Module):
    """As in the same file, from where it caches what it gives; `kind` is NeMo's encoder_type."""

    def __init__(self, kind: str, layers: int = 2, task: str = "taskname") -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("indices", torch.arange(TOKENS))
        self.embedding = nn.Embedding(TOKENS, WIDTH)
        self.inference_table = PromptTable(task)
        nn.init.zeros_(self.inference_table.prompt_table[task].prompt_embeddings.weight)
        if kind == "lstm":
            self.lstm_head = nn.LSTM(
                WIDTH, 12, num_layers=layers, bidirectional=True, batch_first=True
            )
            self.mlp_head = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, WIDTH))
        if kind == "mlp":
            inner = [part for _ in range(layers - 2) for part in (nn.Linear(24, 24), nn.ReLU())]
            self.mlp_head = nn.Sequential(
                nn.Linear(WIDTH, 24), nn.ReLU(), *inner, nn.Linear(24, WIDTH)
            )
        if kind == "tpmlp":
            self.tpmlp = TPMLP()

    def forward(self) -> torch.Tensor:
        """The virtual tokens, (tokens, width)."""
        found = self.embedding(self.indices)[None]
        if self.kind == "lstm":
            return self.mlp_head(self.lstm_head(found)[0])[0]
        if self.kind == "embedding":
            return found[0]
        return (self.mlp_head if self.kind == "mlp" else self.tpmlp)(found)[0]

    def state(self) -> dict[str, Any]:
        """Its own state_dict, by part."""
        parts = {"prompt_table": self.inference_table, "embeddings": self.embedding}
        for name in ("mlp_head", "lstm_head", "tpmlp"):
            if hasattr(self, name):
                parts[name] = getattr(self, name)
        return {name: module.state_dict() for name, module in parts.items()}


def trained(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with random weights; what NeMo clears while it trains stays zero."""
    torch.manual_seed(seed)
    for name, parameter in module.named_parameters():
        if "inference_table" not in name:
            nn.init.normal_(parameter, std=0.3)
    return module


def config(*tasks: str, **changes: Any) -> dict[str, Any]:
    """What matters of a model_config.yaml of these tasks; `changes` replace fields."""
    templates = [
        {
            "taskname": task,
            "prompt_template": "<|VIRTUAL_PROMPT_0|> {sentence} sentiment: {label}",
            "total_virtual_tokens": TOKENS,
            "virtual_token_splits": [TOKENS],
            "truncate_field": "sentence",
        }
        for task in tasks
    ]
    target = "megatron_gpt_prompt_learning_model.MegatronGPTPromptLearningModel"
    return {
        "target": f"nemo.collections.nlp.models.language_modeling.{target}",
        "virtual_prompt_style": "p-tuning",
        "language_model_path": "/base/gpt.nemo",
        "task_templates": templates,
        "data": {"add_bos": False, "add_eos": True},
        **changes,
    }


def packed(
    path: Path,
    state: object,
    settings: dict[str, Any],
    weights: str = WEIGHTS,
    more: Iterable[tuple[tarfile.TarInfo, bytes]] = (),
    gzipped: bool = False,
) -> Path:
    """Write a `.nemo` file, as NeMo's save_to does: `./` before names, an archive of tar."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    members = [
        member(CONFIG, yaml.safe_dump(settings).encode()),
        member(weights, buffer.getvalue()),
    ]
    with tarfile.open(path, "w:gz" if gzipped else "w:") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
        for info, content in more:
            # As they are: what a header says of a member may be a lie.
            archive.fileobj.write(info.tobuf() + content + bytes(-len(content) % tarfile.BLOCKSIZE))
    return path


def member(name: str, content: bytes = b"") -> tuple[tarfile.TarInfo, bytes]:
    """An archive's plain file."""
    info = tarfile.TarInfo(f"./{name}")
    info.size = len(content)
    return info, content


def table_archive(path: Path, *tasks: str, **how: Any) -> tuple[Path, PromptTable]:
    """A finished training's archive, with a table of virtual tokens for each task."""
    table = trained(PromptTable(*tasks))
    assert isinstance(table, PromptTable)
    return packed(path, {"prompt_table": table.state_dict()}, config(*tasks), **how), table
