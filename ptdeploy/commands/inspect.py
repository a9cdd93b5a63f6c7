"""What a checkpoint, a bundle or a pack is, in full and as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ptdeploy.arguments import checked, flag, maybe, one_of, path, text
from ptdeploy.arguments import whole as whole_number
from ptdeploy.backends import engine_facts, engine_words, get_backend
from ptdeploy.bundle import (
    Bundle,
    Pack,
    ParitySummary,
    is_bundle,
    is_pack,
    read_bundle,
    read_pack,
    whole,
)
from ptdeploy.bundle.precision import quantized as quantized_precisions
from ptdeploy.bundle.signature import words_of
from ptdeploy.bundle.task import Head, Task
from ptdeploy.errors import InputError
from ptdeploy.parity.measure import finite
from ptdeploy.printable import number_of, printable_fields
from ptdeploy.source.checkpoint.types import Checkpoint
from ptdeploy.tables import columns

# A graph's tensors that are alike for every layer, and how many of them are shown: one layer's.
_OF_LAYERS, _SHOWN = ("past", "present"), 2

HEADS: dict[Head, str] = {
    "softmax": "softmax: one class of a text is true",
    "sigmoid": "sigmoid: each class is true or not by itself, from a probability of 0.5 on",
    "regression": "regression: its numbers are the answer",
}


@checked(
    path=path,
    adapter=maybe(text),
    task=maybe(one_of(Task)),
    layers=flag,
    task_id=maybe(whole_number()),
)
def inspect(
    path: str | Path,
    adapter: str | None = None,
    task: Task | None = None,
    layers: bool = False,
    task_id: int | None = None,
) -> dict[str, Any]:
    """Describe a checkpoint, a bundle or a pack as nested plain data, ready for JSON.

    `layers` opens a bundle's engine and adds what it runs. Raises CheckpointError or BundleError if
    it is damaged, InputError if there is nothing, and with `layers` TargetUnavailable if the
    engine cannot run here.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder.")
    made = path.is_dir() and is_bundle(path)
    for name, given in (("adapter", adapter), ("task", task), ("task_id", task_id)):
        if made and given is not None:
            raise InputError(
                f"--{name.replace('_', '-')} is about a checkpoint, and {path} is a "
                f"{'pack' if is_pack(path) else 'bundle'}.",
                "Leave it out.",
            )
    if is_pack(path) and not layers:
        return whole(path, lambda: _pack(read_pack(path)))
    if made:
        return whole(path, lambda: _bundle(read_bundle(path), layers))
    if layers:
        raise InputError(
            f"{path}: is no bundle, and only an engine has --layers.",
            "Leave --layers out, or compile it first: ptdeploy compile CHECKPOINT --target TARGET",
        )
    from ptdeploy.source.checkpoint import read_any_task

    return _checkpoint(read_any_task(path, adapter, task, task_id))


def facts_of(made: Bundle | Pack) -> dict[str, Any]:
    """The same of what was just written, with its `notes`, whatever lies in its place by now."""
    facts = _pack(made) if isinstance(made, Pack) else _bundle(made, layers=False)
    return {**facts, "notes": list(made.notes)}


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    encoder = checkpoint.encoder
    return {
        "kind": "checkpoint",
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "peft_type": checkpoint.kind if checkpoint.of_peft else None,
        "task": checkpoint.task.value,
        "adapter": checkpoint.adapter,
        "num_tasks": checkpoint.num_tasks,
        "num_virtual_tokens": checkpoint.num_virtual_tokens,
        "token_dim": checkpoint.token_dim,
        "dtype": checkpoint.dtype,
        "prompt_evaluated": checkpoint.virtual_tokens is not None
        or checkpoint.prefix_kv is not None,
        "prefix_kv": None if checkpoint.prefix_kv is None else list(checkpoint.prefix_kv.shape),
        "prompt_encoder": None
        if encoder is None
        else {
            "kind": encoder.kind,
            "hidden_size": encoder.hidden_size,
            "num_layers": encoder.num_layers,
            "shapes": {name: list(t.shape) for name, t in encoder.tensors.items()},
        },
        "training_can_resume": checkpoint.resumable,
        "heads": {name: list(checkpoint.weights[name].shape) for name in checkpoint.heads},
        "base_weights": len(set(checkpoint.weights) - set(checkpoint.heads)),
        "base_model": checkpoint.base.name,
        "base_revision": checkpoint.base.revision,
        "files": dict(checkpoint.files),
    }


def _pack(pack: Pack) -> dict[str, Any]:
    return {
        "kind": "pack",
        "path": str(pack.path),
        "bytes": sum(entry.size for entry in pack.manifest.files),
        **msgspec.to_builtins(pack.manifest),
    }


def _bundle(bundle: Bundle, layers: bool) -> dict[str, Any]:
    manifest: dict[str, Any] = msgspec.to_builtins(bundle.manifest)
    facts = {
        "kind": "bundle",
        "path": str(bundle.path),
        "bytes": sum(entry.size for entry in bundle.manifest.files),
        **manifest,
        "completed_parity": _completed(bundle),
        "engine": engine_facts(bundle),
    }
    if layers:
        found = get_backend(bundle.manifest.target).layers(bundle, bundle.manifest.device)
        facts["engine_layers"] = msgspec.to_builtins(found)
    return facts


def _completed(bundle: Bundle) -> dict[str, Any] | None:
    """What verify found where the engine can run, of all that the manifest leaves open: `base` is
    the base model alone, `prompts` are by name."""
    from ptdeploy.parity.completed import completed

    found = {name: _summary(one) for name, one in completed(bundle).items()}
    base = found.pop(None, None)
    return {"base": base, "prompts": found} if found or base else None


def _summary(summary: ParitySummary) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(summary)
    # An engine whose numbers are not finite leaves a report that says so, and JSON has null there.
    numbers = {n: found[n] for n in ("max_abs", "perplexity_ratio")}
    return {**found, **{n: v if v is None else finite(v) for n, v in numbers.items()}}


def describe(facts: dict[str, Any]) -> str:
    """The same in words, for a terminal."""
    facts = printable_fields(facts)
    kinds = {"bundle": _describe_bundle, "pack": _describe_pack, "checkpoint": _describe_checkpoint}
    return kinds[facts["kind"]](facts)


def _describe_pack(facts: dict[str, Any]) -> str:
    prompt, base = facts["prompt"], facts["base"]
    facts = {**facts, "prompts": {facts["name"]: prompt}}
    engine = f"{facts['target']}, {facts['device']}, {facts['precision']}"
    lines = [
        ("pack", f"{facts['path']} ({megabytes(facts['bytes'])})"),
        ("proven over", f"{engine}, engine {facts['engine_sha256'][:16]}"),
        ("task", f"{facts['task']} on {base['architecture']}"),
        ("base model", f"{base['name']}, weights {base['weights_sha256'][:16]}"),
        *_prompt_lines(facts["name"], facts),
        ("made with", ", ".join(f"{name} {v}" for name, v in facts["versions"].items())),
        *_file_lines(facts),
    ]
    return _table(lines)


def _describe_checkpoint(facts: dict[str, Any]) -> str:
    encoder = facts["prompt_encoder"]
    lines = [
        ("checkpoint", facts["path"]),
        ("format", facts["format"]),
        (
            "PEFT type",
            f"{facts['peft_type'] or 'none'}, task {facts['task']}, adapter {facts['adapter']!r}",
        ),
        ("prompt", _prompt_words(facts)),
    ]
    if (tasks := facts["num_tasks"]) > 1:
        lines.append(("tasks", f"0 to {tasks - 1}: compile one with --task-id N, or all"))
    if encoder:
        lines.append(
            (
                "prompt encoder",
                f"{encoder['kind']}, hidden size {encoder['hidden_size']}, "
                f"{encoder['num_layers']} layers",
            )
        )
        lines += [("", f"{name} {words_of(shape)}") for name, shape in encoder["shapes"].items()]
    elif facts["peft_type"] and not facts["training_can_resume"]:
        lines.append(("prompt encoder", "absent: only its output was saved"))
    lines.append(
        (
            "training",
            "can resume from here"
            if facts["training_can_resume"]
            else "cannot resume from here: what made the prompt is gone "
            "(ptdeploy.save_full keeps it)",
        )
    )
    heads = [f"{name} {words_of(shape)}" for name, shape in facts["heads"].items()]
    lines.append(("trained head", ", ".join(heads) or "none"))
    if facts["base_weights"]:
        lines.append(("base weights", f"{facts['base_weights']} tensors in the same file"))
    lines.append(("base model", facts["base_model"] or "not named: pass --base"))
    lines += [("file", f"{name}  sha256 {digest[:16]}") for name, digest in facts["files"].items()]
    return _table(lines)


def _prompt_words(facts: dict[str, Any]) -> str:
    if facts["prefix_kv"]:
        layers, _, heads, tokens, width = facts["prefix_kv"]
        shape = (
            f"{number_of(tokens, 'virtual token')}, {layers} layers with {heads} heads of {width}"
        )
        return f"prefix KV of {shape}, {facts['dtype']}"
    evaluated = "evaluated" if facts["prompt_evaluated"] else "not evaluated yet"
    tokens = f"{number_of(facts['num_virtual_tokens'], 'virtual token')}, {facts['token_dim']} wide"
    return f"{tokens}, {facts['dtype']}, {evaluated}"


def _describe_bundle(facts: dict[str, Any]) -> str:
    base, limits = facts["base"], facts["limits"]
    engine = engine_words(facts["target"], facts["engine"])
    lines = [
        ("bundle", f"{facts['path']} ({megabytes(facts['bytes'])})"),
        ("runs on", f"{facts['target']}, {facts['device']}, {facts['precision']}"),
        *_quantization_lines(facts["quantization"]),
        ("task", f"{facts['task']} on {base['architecture']}"),
        ("base model", base["name"]),
        *_base_lines(facts),
        *(line for name in facts["prompts"] for line in _prompt_lines(name, facts)),
        ("tokenizer", tokenizer_words(facts["tokenizer"])),
        (
            "limits",
            f"{limits['max_context']} tokens, virtual ones included, "
            f"{limits['max_batch'] or 'any number of'} rows, vocabulary {limits['vocab_size']}",
        ),
        *engine.built,
        *engine.computes,
        ("made with", ", ".join(f"{name} {v}" for name, v in facts["versions"].items())),
        *(line for name in facts["graphs"] for line in _graph_lines(name, facts)),
    ]
    lines += _file_lines(facts)
    if "engine_layers" in facts:
        lines += _layer_lines(facts["engine_layers"])
    return _table(lines)


def _quantization_lines(found: dict[str, Any] | None) -> Iterator[tuple[str, Any]]:
    """How weights are stored, and how many of them."""
    if found is not None:
        of = f"blocks of {found['block_size']}" if found["block_size"] else "whole columns"
        kind = f"{found['type']}{found['bits']}" if found["type"] == "int" else found["type"]
        share = f"{found['share']:.2%} of those in products"
        yield "weights", f"{kind}, a scale for {of}, {share}"
        if found["calibrated"]:
            yield "", f"activations at fixed scales for {found['calibrated']:.2%} of them"


def _base_lines(facts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The base model alone, where requests may have it or it was compared."""
    alone: dict[str, Any] = {"head": "softmax", **facts["base"]}
    if facts["default_prompt"] is None:
        yield "prompt", "none, unless a request names one"
        yield "parity", _parity_words(alone, facts, _completed_of(None, facts))
    elif alone["parity"] is not None:
        yield "without prompt", _parity(alone["parity"], alone, facts)
    elif _completed_of(None, facts) is not None:
        yield "without prompt", _parity_words(alone, facts, _completed_of(None, facts))
    if alone["graph_parity"] is not None:
        yield "graph parity", _parity(alone["graph_parity"], alone, facts)


def _file_lines(facts: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        ("file", f"{file['path']}  {file['role']}, {megabytes(file['size'])}")
        for file in facts["files"]
    ]


def _prompt_lines(name: str, facts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """A named prompt: what it is, what its head gives, and its parity."""
    from ptdeploy.runtime import ENGINES

    prompt = facts["prompts"][name]
    prefix = f", prefix KV {words_of(prompt['prefix_kv'])}" if prompt["prefix_kv"] else ""
    width = f", {prompt['token_dim']} wide" if prompt["token_dim"] else ""
    default = name == facts.get("default_prompt")
    yield (
        "prompt",
        f"{name!r}{' (the default)' if default else ''}: "
        f"{number_of(prompt['num_virtual_tokens'], 'virtual token')}{width}, "
        f"frozen from {prompt['kind']}"
        f"{prefix}",
    )
    source = prompt["source"]
    of_task = "" if source["task_id"] is None else f", its task {source['task_id']}"
    yield "made from", f"{source['format']}{of_task}"
    if limits := facts.get("limits"):
        room = limits["max_context"] - prompt["num_virtual_tokens"]
        yield "room", f"{room} tokens of text beside it"
    yield "labels", ", ".join(prompt["labels"]) or "none"
    if len(ENGINES[facts["task"]].heads) > 1:
        yield "head", HEADS[prompt["head"]]
    yield "parity", _parity_words(prompt, facts, _completed_of(name, facts))
    if prompt["graph_parity"]:
        yield "graph parity", _parity(prompt["graph_parity"], prompt, facts)


def _completed_of(name: str | None, facts: dict[str, Any]) -> dict[str, Any] | None:
    """What verify found of a prompt, or of the base model alone, after the manifest was written."""
    completed: dict[str, Any] = facts.get("completed_parity") or {"base": None, "prompts": {}}
    found: dict[str, Any] | None = (
        completed["base"] if name is None else completed["prompts"].get(name)
    )
    return found


def _graph_lines(name: str, facts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """A named graph: its route, its inputs and its outputs."""
    graph = facts["graphs"][name]
    yield "graph", f"{name!r}, {graph['route']}: {graph['reason']}"
    for side in ("inputs", "outputs"):
        of_layers = [spec for spec in graph[side] if spec["role"] in _OF_LAYERS]
        left_out = of_layers[_SHOWN:]
        for spec in graph[side]:
            if spec not in left_out:
                shape = words_of(spec["shape"])
                yield side[:-1], f"{spec['name']} {spec['dtype']} {shape}: {spec['meaning']}"
        if left_out:
            yield "", f"and {len(left_out)} more of the KV buffer, for the other layers"


def tokenizer_words(found: dict[str, Any] | None) -> str:
    """Whose tokenizer a bundle has, from its manifest's `tokenizer` as plain data."""
    if found is None:
        return "none: it takes token ids only"
    whose = {"checkpoint": "the checkpoint's", "base": "the base model's", "given": "as told, a"}
    return f"{whose[found['origin']]} {found['type']}, {found['size']} tokens"


def _layer_lines(found: dict[str, Any]) -> list[tuple[str, Any]]:
    """The engine's memory, and each of its layers: what it does, in which types, its name."""
    layers = found["layers"]
    fused = sum(layer["fused"] for layer in layers)
    memory = ", ".join(f"{name} {megabytes(size)}" for name, size in found["memory"].items())
    lines = [("memory", memory), ("layers", f"{len(layers)}, {fused} of them fused")]
    for layer in layers:
        inputs, outputs = (
            ", ".join(dict.fromkeys(layer[side])) or "?" for side in ("inputs", "outputs")
        )
        words = f"{layer['operator'] or '?'}  {inputs} -> {outputs}  {layer['name']}"
        if layer["fused"]:
            words += f"  fused, of {layer['module'] or 'several modules'}"
        if layer["kernel"]:
            words += f"  kernel {layer['kernel']}"
        lines.append(("layer", words))
    return lines


def _parity_words(
    prompt: dict[str, Any], facts: dict[str, Any], completed: dict[str, Any] | None
) -> str:
    if prompt["parity"] is not None:
        return _parity(prompt["parity"], prompt, facts)
    if completed is not None:
        return f"{_parity(completed, prompt, facts)} (pending when compiled, completed by verify)"
    if facts["kind"] == "pack":
        return "pending: prompt add shows it over an engine that can run"
    return "pending: verify completes it on a GPU"


def _parity(found: dict[str, Any], prompt: dict[str, Any], facts: dict[str, Any]) -> str:
    ratio = found["perplexity_ratio"]
    quantized = facts["precision"] in quantized_precisions()
    agreement = agreement_words(prompt["head"], quantized, found["top1_agreement"])
    return (
        f"{'passed' if found['passed'] else 'FAILED'}: max abs {_short(found['max_abs'])} "
        f"over {found['cases']} cases{agreement}, "
        + (f"perplexity {ratio:.3f} times the reference's, " if ratio is not None else "")
        + f"against {found['reference']}"
    )


def _short(number: float | None) -> str:
    return "not finite" if number is None else f"{number:.2g}"


def agreement_words(head: Head, quantized: bool, share: float) -> str:
    """Which share of answers agreed, to go on from other words; a value alone has none."""
    if head == "softmax":
        return f", top-1 agreement {share:.2%}"
    return f", explained variance {share:.2%}" if quantized else ""


def megabytes(size: int) -> str:
    """A size for people: kB below a megabyte, MB above."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def _table(lines: list[tuple[str, Any]]) -> str:
    return "\n".join(columns(lines, (15, 0), gap=" "))
