"""A folder or hub id where a tokenizer may lie, and what is wrong with one that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ptdeploy.bundle.schema import MOST_BYTES
from ptdeploy.errors import BaseModelError, CheckpointError, InputError, PtdeployError

NONE = "none"

# Every name under which transformers' tokenizers keep what they are made of.
TOKENIZER_FILES = frozenset(
    (
        "added_tokens.json",
        "bpe.codes",
        "byte_maps.json",
        "dict.txt",
        "emoji.json",
        "entity_vocab.json",
        "merges.txt",
        "normalizer.json",
        "prophetnet.tokenizer",
        "qwen.tiktoken",
        "sentencepiece.bpe.model",
        "sentencepiece.model",
        "source.spm",
        "spiece.model",
        "spm.model",
        "spm_char.model",
        "target.spm",
        "target_vocab.json",
        "tekken.json",
        "tiktoken.model",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab-src.json",
        "vocab-tgt.json",
        "vocab.bpe",
        "vocab.json",
        "vocab.txt",
        "word_pronunciation.json",
        "word_shape.json",
    )
)
_PACKAGES = (("tiktoken", ("tiktoken.model", ".tiktoken")), ("sentencepiece", (".model", ".spm")))
_LFS = b"version https://git-lfs"
_ELSE = (
    f"Or take another tokenizer with --tokenizer FOLDER_OR_ID; --tokenizer {NONE} leaves it out."
)

Origin = Literal["checkpoint", "base", "given"]


@dataclass(frozen=True)
class Place:
    """A folder or a hub id where a tokenizer may lie."""

    origin: Origin
    name: str
    revision: str | None = None
    config: Any = field(default=None, repr=False)

    @property
    def folder(self) -> Path | None:
        path = Path(self.name)
        return path if path.is_dir() else None

    def files(self) -> list[str]:
        """The tokenizer files that are there; of a hub id those that can be had now."""
        if self.folder is not None:
            names = (path.name for path in self.folder.iterdir())
            return sorted(name for name in names if name in TOKENIZER_FILES)
        return [name for name in sorted(TOKENIZER_FILES) if self.has(name)]

    def has(self, name: str) -> bool:
        from transformers.utils import cached_file

        return (
            cached_file(
                self.name,
                name,
                revision=self.revision,
                _raise_exceptions_for_gated_repo=False,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
            is not None
        )

    def refuse(self, problem: str, fix: str = "") -> PtdeployError:
        """The error that blames whoever brought this tokenizer."""
        kinds = {"checkpoint": CheckpointError, "base": BaseModelError, "given": InputError}
        return kinds[self.origin](problem, f"{fix} {_ELSE}".strip())


def needs(files: Sequence[str], error: Exception) -> str | None:
    """What a whole tokenizer needs that is not here, or None if it is a broken one."""
    if isinstance(error, ImportError):
        return next(iter(str(error).strip().splitlines()), "a package is missing").strip()
    if "trust_remote_code" in str(error):
        return "the code is its own, which is never run"
    for package, endings in _PACKAGES:
        needing = [name for name in files if name.endswith(endings)]
        if needing and "tokenizer.json" not in files and find_spec(package) is None:
            return (
                f"{needing[0]} needs the package {package}, which is not installed here; with it, "
                "or saved again with save_pretrained there, it can"
            )
    return None


def refuse_unreadable(place: Place, folder: Path) -> None:
    """Raises the place's error if a file there is what Git LFS leaves of one, or is larger than any
    tokenizer's."""
    most = MOST_BYTES["tokenizer"]
    beside = ("chat_template.jinja", "special_tokens_map.json", "config.json")
    for name in (*place.files(), *beside):
        path = folder / name
        if path.is_file():
            if (size := path.stat().st_size) > most:
                raise place.refuse(
                    f"{path}: has {size} bytes; at most {most} are read of a tokenizer's file.",
                    "Copy the file again.",
                )
            with path.open("rb") as stream:
                start = stream.read(len(_LFS))
            if start == _LFS:
                raise place.refuse(
                    f"{path}: is a Git LFS pointer, not the file itself.",
                    "Fetch it with: git lfs pull.",
                )


def broken(place: Place, files: Sequence[str], error: Exception) -> PtdeployError:
    """The file that cannot be read, and why; the place where none can be blamed."""
    import tokenizers

    again = "Copy the whole file again."
    for path, reason in _unreadable(place, files):
        return place.refuse(f"{path}: {reason}.", again)
    whole = place.folder / "tokenizer.json" if place.folder is not None else None
    if whole is not None and whole.is_file():
        try:
            tokenizers.Tokenizer.from_file(str(whole))
        except Exception as cause:  # the Rust side raises plain Exception
            return place.refuse(
                f"{whole}: tokenizers {tokenizers.__version__} cannot read it ({_first(cause)}).",
                "It is damaged, or a newer version wrote it: pip install -U tokenizers "
                "transformers.",
            )
    return place.refuse(
        f"{place.name}: transformers cannot read the tokenizer there, {', '.join(files)} "
        f"({_first(error)}).",
        "Copy its files again.",
    )


def _unreadable(place: Place, files: Sequence[str]) -> Iterator[tuple[Path, str]]:
    for name in files if place.folder is not None else ():
        assert place.folder is not None
        path = place.folder / name
        if not name.endswith((".json", ".txt")):
            continue
        try:
            text = path.read_text("utf-8")
            if not text.strip():
                yield path, "is empty"
            elif name.endswith(".json") and not isinstance(json.loads(text), dict):
                yield path, "is no JSON object"
        except OSError as error:
            yield path, f"cannot be read ({error.strerror})"
        except UnicodeDecodeError as error:
            yield path, f"is not UTF-8 text ({error})"
        except (ValueError, RecursionError) as error:
            yield path, f"is not JSON ({error})"


def refuse_cut_merges(place: Place, files: Sequence[str]) -> None:
    """A merges.txt that lost its end is still one: most tokens are then never made."""
    folder = place.folder
    if folder is None or "tokenizer.json" in files or not {"vocab.json", "merges.txt"} <= {*files}:
        return
    vocabulary = json.loads((folder / "vocab.json").read_text("utf-8"))
    lines = (folder / "merges.txt").read_text("utf-8").splitlines()
    made = {line.replace(" ", "", 1) for line in lines if not line.startswith("#version")}
    single = {token for token in vocabulary if len(token.removesuffix("</w>")) <= 1}
    unmade = len(vocabulary.keys() - made - single)
    if unmade > max(64, len(vocabulary) // 20):
        raise place.refuse(
            f"{folder / 'merges.txt'}: makes {len(vocabulary) - unmade} of the {len(vocabulary)} "
            "tokens in vocab.json: it was cut short.",
            "Copy the whole file again.",
        )


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
