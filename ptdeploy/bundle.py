"""The bundle: a folder that says what it is. Manifest schema, atomic write, checked read."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from ptdeploy.errors import BundleError, OutputError
from ptdeploy.task import GenerationOptions, Graph, Task, TensorSpec

MANIFEST_NAME = "manifest.json"
FORMAT = "ptdeploy-bundle"
FORMAT_VERSION = 3
MAX_MANIFEST_BYTES = 4 * 1024 * 1024

Role = Literal[
    "model",
    "weights",
    "engine",
    "engine_info",
    "prompt",
    "tokenizer",
    "chat_template",
    "reference",
    "parity",
    "graph_parity",
]


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the bundle: its path inside it with forward slashes, role, bytes, SHA-256."""

    path: str
    role: Role
    size: int
    sha256: str


class PromptInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The frozen prompt: how it was made, and the hash of its virtual tokens as float32."""

    kind: str
    num_virtual_tokens: int
    token_dim: int
    sha256: str
    prefix_kv: tuple[int, ...] | None


class SourceInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where it came from: names and hashes, never a path of the machine that compiled it."""

    format: str
    adapter: str
    files: dict[str, str]
    base_model: str
    base_config_sha256: str
    architecture: str


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a request may ask for, in tokens: `max_sequence` is text alone, `max_context` all.

    `max_batch` bounds the rows of one run; None leaves that to the memory. `max_prefill` bounds the
    tokens that one run of a causal model takes; None leaves that to the runtime.
    """

    max_sequence: int
    max_context: int
    vocab_size: int
    max_batch: int | None = None
    max_prefill: int | None = None


class Quantization(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How weights are stored: `bits` each, in blocks of `block_size` along a column with one scale.

    A `block_size` of 0 is the whole column; `type` is what the bits are. `accuracy_level` is ONNX
    Runtime's for MatMulNBits: 1 computes in fp32, 4 in int8, 0 means nothing. `min_agreement` and
    `max_perplexity_ratio` are what the engine had to reach against the reference on text.
    """

    bits: int
    block_size: int
    accuracy_level: int
    min_agreement: float
    max_perplexity_ratio: float
    type: Literal["int", "float8e4m3fn"] = "int"


class TokenizerInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tokenizer, as transformers had it: whose it is, its class, and its tokens.

    `origin` is "checkpoint" where it was saved with the adapter, "base" where it is the base
    model's, "given" where compile was told. The flags are transformers' settings of those names
    that a tokenizer.json cannot hold: with `split_special_tokens` a special token's name in a text
    is text like any other, with `clean_up_tokenization_spaces` decoded text loses the blanks before
    punctuation.
    """

    origin: Literal["checkpoint", "base", "given"]
    type: str
    size: int
    split_special_tokens: bool = False
    clean_up_tokenization_spaces: bool = False


class ParitySummary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a parity check at compile time found; the whole report is in the bundle too."""

    passed: bool
    cases: int
    max_abs: float
    top1_agreement: float
    reference: str
    perplexity_ratio: float | None = None


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`manifest.json`, described in docs/bundle.md and docs/manifest.schema.json.

    `parity` is of the engine, and null where it was built on a machine that cannot run it;
    `graph_parity` is of the graph the engine was built from, run by another one.
    """

    format: Literal["ptdeploy-bundle"] = "ptdeploy-bundle"
    format_version: int = FORMAT_VERSION
    versions: dict[str, str]
    target: str
    device: str
    precision: str
    task: Task
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    prompt: PromptInfo
    source: SourceInfo
    limits: Limits
    labels: tuple[str, ...] = ()
    graph: Graph
    quantization: Quantization | None = None
    generation: GenerationOptions | None = None
    tokenizer: TokenizerInfo | None = None
    parity: ParitySummary | None = None
    graph_parity: ParitySummary | None = None
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest was read and whose files were checked against it."""

    path: Path
    manifest: Manifest

    def file(self, role: Role) -> Path | None:
        """The path of the one file with this role, if there is one."""
        for entry in self.manifest.files:
            if entry.role == role:
                return self.path / entry.path
        return None


def check_hashes(bundle: Bundle) -> None:
    """Hash every file. Raises BundleError on the first whose SHA-256 is not the manifest's."""
    for entry in bundle.manifest.files:
        _check_hash(bundle.path / entry.path, entry)


def is_bundle(path: Path) -> bool:
    """Whether `path` looks like a bundle, whole or damaged: a folder with a manifest."""
    return (path / MANIFEST_NAME).is_file()


def manifest_schema() -> bytes:
    """The manifest's JSON Schema, as docs/manifest.schema.json publishes it."""
    return msgspec.json.format(msgspec.json.encode(msgspec.json.schema(Manifest)), indent=2) + b"\n"


def read_bundle(path: str | Path, hashes: bool = True) -> Bundle:
    """Read a bundle and check every file in its manifest; `hashes=False` checks sizes only.

    Raises BundleError on a missing or oversize manifest, an unknown version, a field that is not
    in the schema, a path that leaves the folder, and a missing or changed file.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    seen = set()
    for entry in manifest.files:
        if entry.path in seen:
            raise BundleError(f"{path / MANIFEST_NAME}: lists {entry.path!r} twice.")
        seen.add(entry.path)
        _check_file(path, entry, hashes)
    roles = {entry.role for entry in manifest.files}
    for needed, words in (
        ({"model", "engine"}, "'model' or 'engine'"),
        ({"prompt"}, "'prompt'"),
    ):
        if not roles & needed:
            raise BundleError(f"{path / MANIFEST_NAME}: lists no file with the role {words}.")
    return Bundle(path, manifest)


@contextmanager
def stage_bundle(destination: Path) -> Iterator[Path]:
    """A temporary folder beside `destination`, removed at the end unless it was published."""
    staging = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_destination(destination: Path, force: bool) -> None:
    """Refuse, before any work, a destination that could not be published to.

    Only an older bundle or an empty folder is ever replaced, and only with `force`.
    """
    if destination.exists() or destination.is_symlink():
        if not force:
            raise OutputError(
                f"{destination}: exists already.", "Choose another -o, or replace it with --force."
            )
        if not destination.is_dir() or destination.is_symlink():
            raise OutputError(f"{destination}: is not a folder, so --force leaves it alone.")
        if not _is_ours(destination) and any(destination.iterdir()):
            raise OutputError(
                f"{destination}: is a folder of something else than a bundle, so --force leaves "
                "it alone.",
                "Choose another -o, or remove the folder yourself.",
            )
    parent = destination.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        probe = tempfile.mkdtemp(prefix=f".{destination.name}.", dir=parent)
        os.rmdir(probe)
    except OSError as error:
        raise OutputError(
            f"{parent}: cannot be written to ({error.strerror}).", "Choose another -o."
        ) from None


def _is_ours(folder: Path) -> bool:
    """Whether a folder is a bundle for certain: many tools call a file manifest.json."""
    try:
        header = msgspec.json.decode((folder / MANIFEST_NAME).read_bytes(), type=_Header)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return header.format == FORMAT


def publish(staging: Path, manifest: Manifest, destination: Path) -> Bundle:
    """Write the manifest over the staged files, flush everything, and rename into place.

    Whatever kills the process, `destination` is a whole bundle or none. An older bundle there is
    moved aside first and removed last.
    """
    entries = tuple(_entry(staging, entry) for entry in manifest.files)
    manifest = msgspec.structs.replace(manifest, files=entries)
    (staging / MANIFEST_NAME).write_bytes(
        msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    )
    try:
        for item in sorted(staging.rglob("*")):
            # safetensors writes files that only their owner can read; a bundle is handed over.
            item.chmod(0o755 if item.is_dir() else 0o644)
            _flush(item)
        staging.chmod(0o755)
        _flush(staging)
        older = None
        if destination.exists():
            older = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
            os.rename(destination, older / "replaced")
        try:
            os.rename(staging, destination)
        except OSError:
            if older is not None:
                os.rename(older / "replaced", destination)
            raise
        _flush(destination.absolute().parent)
        if older is not None:
            shutil.rmtree(older, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{destination}: cannot be written ({error.strerror}).") from None
    return Bundle(destination, manifest)


def staged(path: str, role: Role) -> FileEntry:
    """An entry for a staged file; `publish` fills in its size and hash."""
    return FileEntry(path, role, 0, "")


def _entry(folder: Path, entry: FileEntry) -> FileEntry:
    file = folder / entry.path
    return FileEntry(entry.path, entry.role, file.stat().st_size, _sha256(file))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Header(msgspec.Struct):
    """The two fields that every version of the manifest has."""

    format: str
    format_version: int


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST_NAME
    if not path.is_dir():
        raise BundleError(f"{path}: no such bundle folder.")
    if not file.is_file():
        raise BundleError(
            f"{path}: has no {MANIFEST_NAME}, so it is no bundle.",
            "Make one with: ptdeploy compile CHECKPOINT --target ort -o BUNDLE",
        )
    if file.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{file}: larger than {MAX_MANIFEST_BYTES} bytes, not a manifest.")
    raw = file.read_bytes()
    try:
        # msgspec does not look at the bytes of names it does not know.
        raw.decode()
        header = msgspec.json.decode(raw, type=_Header)
        if header.format != FORMAT or header.format_version != FORMAT_VERSION:
            raise BundleError(
                f"{file}: is {header.format!r} version {header.format_version}; this ptdeploy "
                f"reads {FORMAT!r} version {FORMAT_VERSION}.",
                "Compile the checkpoint again, or install the ptdeploy that made the bundle.",
            )
        return msgspec.json.decode(raw, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(
            f"{file}: not a valid manifest ({error}).", "Compile the checkpoint again."
        ) from None


def _check_file(folder: Path, entry: FileEntry, hashes: bool) -> None:
    inside = PurePosixPath(entry.path)
    where = f"{folder / MANIFEST_NAME}: {entry.path!r}"
    if (
        not entry.path
        or "\\" in entry.path
        or "\0" in entry.path
        or inside.is_absolute()
        or ".." in inside.parts
    ):
        raise BundleError(f"{where} leaves the bundle's folder.")
    file = folder / inside
    try:
        resolved = file.resolve()
    except RuntimeError:
        raise BundleError(f"{where} is a link that leads back to itself.") from None
    if not resolved.is_relative_to(folder.resolve()):
        raise BundleError(f"{where} is a link that leaves the bundle's folder.")
    if not _is_file(file):
        raise BundleError(f"{file}: is missing.", "Copy the whole bundle folder again.")
    size = file.stat().st_size
    if size != entry.size:
        raise BundleError(
            f"{file}: has {size} bytes, but the manifest says {entry.size}.",
            "The file is damaged. Copy the whole bundle folder again.",
        )
    if hashes:
        _check_hash(file, entry)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that the file system does not allow
        return False


def _check_hash(file: Path, entry: FileEntry) -> None:
    if _sha256(file) != entry.sha256:
        raise BundleError(
            f"{file}: its SHA-256 is not the manifest's.",
            "The file was changed or damaged. Copy the whole bundle folder again.",
        )
