"""What a manifest holds: the schema of `manifest.json`."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from ptdeploy.bundle.task import Head, Task, TensorSpec
from ptdeploy.files import json_document

MANIFEST_NAME = "manifest.json"
FORMAT, PACK_FORMAT = "ptdeploy-bundle", "ptdeploy-prompt"
FORMAT_VERSION = 4
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
# The one graph of every task so far, and the prompt of a bundle that was not told a name for it.
MODEL, DEFAULT_PROMPT = "model", "default"
_PROMPT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Role = Literal[
    "model",
    "weights",
    "engine",
    "engine_info",
    "prompt",
    "tokenizer",
    "chat_template",
    "tokenizer_program",
    "tokenizer_weights",
    "reference",
    "parity",
    "graph_parity",
]
# The most bytes of a file of a role whose reader takes it whole, many times what any has had. Of
# the others the reader knows how many there must be, or the engine maps them.
MOST_BYTES: dict[Role, int] = {
    "model": 2**31 - 1,  # as protobuf has it
    "engine_info": 4 << 20,
    "tokenizer": 512 << 20,
    "chat_template": 16 << 20,
    "tokenizer_program": 512 << 20,
    "tokenizer_weights": 2**31 - 1,
    "parity": 128 << 20,
    "graph_parity": 128 << 20,
}


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the bundle: its path inside it with forward slashes, role, bytes, SHA-256.

    `of` names the graph or the prompt that it is a file of, null for those of the whole bundle.
    """

    path: str
    role: Role
    size: int
    sha256: str
    of: str | None = None


class SourceInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The checkpoint: names and hashes, never a path of the machine that compiled it.

    `task_id` is the one of several tasks that a multitask prompt was trained for.
    """

    format: str
    adapter: str
    files: dict[str, str]
    task_id: int | None = None


class ParitySummary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a parity check at compile time found; the whole report is in the bundle too.

    `top1_agreement` is a case's smallest; of quantized weights it is that of all answers to the
    evaluation text, near ties too, or the explained variance of a head that chooses no one class.
    """

    passed: bool
    cases: int
    max_abs: float
    top1_agreement: float
    reference: str
    perplexity_ratio: float | None = None


class BaseInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The base model: its name without any path, its architecture, and two hashes.

    `config_sha256` is of its configuration; `weights_sha256` of all weights that the engine was
    made from but for those that belong to prompts. `parity` and `graph_parity` are as a prompt's,
    of the engine without a prompt; null where that was not compared.
    """

    name: str
    architecture: str
    config_sha256: str
    weights_sha256: str
    parity: ParitySummary | None = None
    graph_parity: ParitySummary | None = None


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the engine takes: `max_context` tokens a row, virtual tokens and text together.

    `max_batch` bounds the rows of one run; None leaves that to the memory. `max_prefill` bounds the
    tokens that one run of a causal model takes; None leaves that to the runtime. `type_vocab_size`
    is how many segments (token_type_ids) the model tells apart; 0 for a model without.
    """

    max_context: int
    vocab_size: int
    max_batch: int | None = None
    max_prefill: int | None = None
    type_vocab_size: int = 0

    def beside(self, virtual_tokens: int) -> RequestLimits:
        """What a request may ask for whose prompt has so many virtual tokens."""
        room = self.max_context - virtual_tokens
        return RequestLimits(**msgspec.structs.asdict(self), max_sequence=room)


class RequestLimits(Limits, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits, and the tokens of text that fit beside a prompt: `max_sequence`."""

    max_sequence: int

    def of_engine(self) -> Limits:
        """Those that hold whatever the prompt."""
        return Limits(**{name: getattr(self, name) for name in Limits.__struct_fields__})


class Quantization(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How weights are stored: `bits` each, in blocks of `block_size` along a column with one scale.

    A `block_size` of 0 is the whole column; `type` is what the bits are. `accuracy_level` is that
    of MatMulNBits: 1 computes in fp32, 4 in int8, 0 means nothing. `min_agreement`,
    `max_perplexity_ratio` and, for a classifier, `max_logits_error` are what the engine had to
    reach against the reference on text; null asks for nothing. `min_class_agreement` is what a
    prompt whose head chooses one class must reach instead of `min_agreement`, where that is
    another. `activations` "int8" says that what is multiplied with them is quantized too, with a
    scale for each token found as the engine runs. `share` is how much of the weights in products is
    stored so; the others are floats. `calibrated` is how much of those is multiplied with
    activations whose scale was found on texts, and is the same for every token.
    """

    bits: int
    block_size: int
    accuracy_level: int
    min_agreement: float
    max_perplexity_ratio: float
    type: Literal["int", "float8e4m3fn"] = "int"
    max_logits_error: float | None = None
    activations: Literal["float", "int8"] = "float"
    share: float = 1.0
    min_class_agreement: float | None = None
    calibrated: float = 0.0

    def of_head(self, head: Head) -> Quantization:
        """What is asked of a prompt with such a head, as `min_agreement`."""
        if self.min_class_agreement is None:
            return self
        least = self.min_class_agreement if head == "softmax" else self.min_agreement
        return msgspec.structs.replace(self, min_agreement=least, min_class_agreement=None)


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which route a graph took, and why: `fused` has one operator for each layer's attention."""

    route: Literal["fused", "plain"]
    reason: str


class Graph(Route, frozen=True, forbid_unknown_fields=True):
    """A graph: its route, and the tensors that go in and out of it, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class GenerationOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a causal model chooses tokens: a model's defaults, or what one request uses.

    The meanings are transformers'; `top_k` 0, `top_p` 1 and `min_p` 0 cut nothing. Without
    `do_sample` the likeliest token is taken.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    eos_token_ids: tuple[int, ...] = ()


class TokenizerInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tokenizer, as transformers had it: whose it is, its class, and its tokens.

    `origin` is "checkpoint" where it was saved with the adapter, "base" where it is the base
    model's, "given" where compile was told. The flags are transformers' settings of those names
    that a tokenizer.json cannot hold: with `split_special_tokens` a special token's name in a text
    is text like any other, with `clean_up_tokenization_spaces` decoded text loses the blanks before
    punctuation. Without `gives_token_type_ids` the tokenizer gives a model no segments, and each
    token's is 0, whatever the tokenizer.json says.
    """

    origin: Literal["checkpoint", "base", "given"]
    type: str
    size: int
    split_special_tokens: bool = False
    clean_up_tokenization_spaces: bool = False
    gives_token_type_ids: bool = True


class PromptInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A frozen prompt: how it was made, and the hash of its virtual tokens as float32.

    Where it has none but a trained prefix KV, `token_dim` is null, and the hash is of that.
    `prefix_kv` is the shape of its prefix KV: (layers, 2, kv heads, virtual tokens, head dim); null
    where the virtual tokens are run. `labels` and `head` belong to the head that was trained with
    it: `head` says what logits are: "softmax" (one class is true), "sigmoid" (each class is or is
    not), or "regression" (the logits are the answer). With `padding_id`, of a trained prefix KV of
    a decoder, a text is answered at its last token that is another. `parity` is of the engine with
    this prompt, and null where it was built on a machine that cannot run it; `graph_parity` is of
    the graph the engine was built from, run by another one.
    """

    kind: str
    num_virtual_tokens: int
    token_dim: int | None
    sha256: str
    prefix_kv: tuple[int, ...] | None
    labels: tuple[str, ...] = ()
    head: Head = "softmax"
    padding_id: int | None = None
    source: SourceInfo
    parity: ParitySummary | None = None
    graph_parity: ParitySummary | None = None


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`manifest.json`, described in docs/bundle.md and docs/manifest.schema.json.

    `graphs` and `prompts` are by name. `default_prompt` is the one that a request has which names
    none; null is the base model alone.
    """

    format: Literal["ptdeploy-bundle"] = "ptdeploy-bundle"
    format_version: int = FORMAT_VERSION
    versions: dict[str, str]
    target: str
    device: str
    precision: str
    task: Task
    graphs: dict[str, Graph]
    prompts: dict[str, PromptInfo]
    default_prompt: str | None
    base: BaseInfo
    limits: Limits
    quantization: Quantization | None = None
    generation: GenerationOptions | None = None
    tokenizer: TokenizerInfo | None = None
    files: tuple[FileEntry, ...]

    @property
    def graph(self) -> Graph:
        """The graph of a bundle that was checked to have it."""
        return self.graphs[MODEL]

    @property
    def prompt(self) -> PromptInfo:
        """The default prompt; where there is none, the base model alone, as one of no tokens."""
        if self.default_prompt is not None:
            return self.prompts[self.default_prompt]
        return PromptInfo(
            kind="no prompt",
            num_virtual_tokens=0,
            token_dim=None,
            sha256="",
            prefix_kv=None,
            source=SourceInfo("the base model alone", "", {}),
            parity=self.base.parity,
            graph_parity=self.base.graph_parity,
        )

    @property
    def request_limits(self) -> RequestLimits:
        """What a request with the default prompt may ask for."""
        return self.limits.beside(self.prompt.num_virtual_tokens)

    def with_prompt(self, name: str | None, **changes: object) -> Manifest:
        """The manifest with some fields of one prompt changed; None is the base model alone."""
        if name is None:
            return msgspec.structs.replace(self, base=msgspec.structs.replace(self.base, **changes))
        changed = msgspec.structs.replace(self.prompts[name], **changes)
        return msgspec.structs.replace(self, prompts={**self.prompts, name: changed})


class Header(msgspec.Struct):
    """The two fields that every version of the manifest has."""

    format: str
    format_version: int


def manifest_schema() -> bytes:
    """The manifest's JSON Schema, as docs/manifest.schema.json publishes it."""
    return json_document(msgspec.json.schema(Manifest))


def staged(path: str, role: Role, of: str | None = None) -> FileEntry:
    """An entry for a staged file; `publish` fills in its size and hash."""
    return FileEntry(path, role, 0, "", of)


def is_prompt_name(name: str) -> bool:
    """Whether a prompt can have that name, which is a folder's too."""
    return _PROMPT_NAME.fullmatch(name) is not None


def prompt_folder(name: str | None) -> str:
    """Where a prompt's files lie in the bundle; None is the base model alone."""
    return "base" if name is None else f"prompts/{name}"
