"""A base model's configuration files, held against what a model can have before one is read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptdeploy.arguments import MOST, shown
from ptdeploy.source.checkpoint.tensors import MAX_JSON_BYTES

_FILES = ("config.json", "generation_config.json")
# transformers makes a module for each layer and a name for each class, however many there are said
# to be. The deepest models have some hundred layers. Doge's experts are keys of a
# table, 16,384 of them unless told.
_BOUNDS = (
    (re.compile(r"(^|_)(layers?|depths?|blocks|block_sizes|block_repeats|groups)$"), 4096),
    (re.compile(r"(^|_)experts$"), 1 << 17),
    (re.compile(r"(^|_)num_labels$"), 1_000_000),
    (re.compile(r"(size|positions?|position_embeddings|dim|heads?|embd|inner|ctx)$"), MOST),
    (re.compile(r"^d_(model|ff|kv|inner)$"), MOST),
)


def check_config_files(name: str, revision: str | None) -> None:
    """Raises ValueError if a file of a base model's folder, or of its hub id, is larger than any
    configuration, or asks for more of something than any model has."""
    for path in _config_files(name, revision):
        if (size := path.stat().st_size) > MAX_JSON_BYTES:
            raise ValueError(f"{path.name} has {size} bytes; at most {MAX_JSON_BYTES} are read")
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            continue  # transformers says what is wrong with it, if it reads it
        for field, value in _numbers(content):
            for names, most in _BOUNDS:
                if names.search(field) and value > most:
                    raise ValueError(
                        f"{path.name}: {field} is {shown(value)}; at most {most} is read"
                    )


def _config_files(name: str, revision: str | None) -> list[Path]:
    from transformers.utils import cached_file

    place = Path(name)
    if place.is_dir():
        # A configuration may name others for versions of transformers: config.4.0.0.json.
        found = [*place.glob("config*.json"), place / _FILES[1]]
    elif place.exists():
        found = [place]
    else:
        cached = [
            cached_file(
                name,
                file,
                revision=revision,
                _raise_exceptions_for_gated_repo=False,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
            for file in _FILES
        ]
        found = [Path(one) for one in cached if one is not None]
    return [one for one in found if one.is_file()]


def _numbers(content: object) -> Iterator[tuple[str, float]]:
    """Every number of a JSON document, those of parts and lists too, with its field's name."""
    left: list[tuple[str, Any]] = [("", content)]
    while left:
        field, value = left.pop()
        if isinstance(value, dict):
            left += value.items()
        elif isinstance(value, list):
            left += ((field, one) for one in value)
        elif isinstance(value, int | float):
            yield field, value
