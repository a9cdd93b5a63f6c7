"""What a model's numbers mean, beyond its weights: its head, its classes, how it chooses tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from ptdeploy.bundle import GenerationOptions
from ptdeploy.bundle.task import Head
from ptdeploy.errors import BaseModelError, InputError
from ptdeploy.printable import printable
from ptdeploy.runtime.sampling import check
from ptdeploy.source.base import BaseModel, quiet_libraries
from ptdeploy.source.checkpoint import Checkpoint

if TYPE_CHECKING:
    from transformers import GenerationConfig

_FILE = "generation_config.json"
_HEADS: dict[str | None, Head] = {
    "regression": "regression",
    "multi_label_classification": "sigmoid",
    "single_label_classification": "softmax",
}
# Fields of GenerationConfig that change no token of one greedy or sampled continuation.
_HARMLESS = frozenset(
    """
    use_cache cache_implementation cache_config max_cache_len output_attentions
    output_hidden_states output_scores output_logits return_dict_in_generate pad_token_id
    bos_token_id decoder_start_token_id is_assistant num_assistant_tokens
    num_assistant_tokens_schedule assistant_confidence_threshold prompt_lookup_num_tokens
    max_matching_ngram_size assistant_early_exit assistant_lookbehind target_lookbehind
    assistant_ensemble_weight speculation_type use_mtp compile_config disable_compile
    continuous_batching_config low_memory prefill_chunk_size transformers_version
    renormalize_logits remove_invalid_values
    """.split()  # noqa: SIM905
)
# Fields that mean something only beside another one.
_ONLY_WITH = {
    "length_penalty": "num_beams",
    "early_stopping": "num_beams",
    "diversity_penalty": "num_beams",
    "num_beam_groups": "num_beams",
    "typical_p": "do_sample",
    "epsilon_cutoff": "do_sample",
    "eta_cutoff": "do_sample",
    "top_h": "do_sample",
}
# The numbers at which a field does nothing, where they are others than 0: as transformers asks.
_NEUTRAL: dict[str, tuple[int, ...]] = {
    "typical_p": (1,),
    "length_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "guidance_scale": (1,),
    "num_beams": (1,),
    "num_return_sequences": (0, 1),
    "num_beam_groups": (0, 1),
    # Token 0 is a token, and no time or room at all is a limit.
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "max_time": (),
    "max_length": (),
    "top_h": (),
}
_TOP_K = 50
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_INSTEAD = {
    "max_length": "it counts the text too; give max_new_tokens with the request",
    "min_length": "it counts the text too; give min_new_tokens with the request",
    "stop_strings": "give them as stop with the request",
    "num_return_sequences": "send the text as often, each with a seed of its own",
    "max_time": "cancel the request",
}


@dataclass(frozen=True)
class Meaning:
    """How logits are to be read. `notes` say what was guessed, or is not kept.

    `padding_id` is as PromptInfo's, of a prompt that is a prefix KV.
    """

    head: Head
    labels: tuple[str, ...]
    generation: GenerationOptions | None
    notes: tuple[str, ...]
    padding_id: int | None = None


def read_meaning(checkpoint: Checkpoint, base: BaseModel, head: str | None = None) -> Meaning:
    """Read what the base's and the checkpoint's configurations say; `head` is over them.

    Raises InputError if `head` does not fit the task, BaseModelError if generation_config.json
    cannot be read or asks for what is out of range.
    """
    return base.kind.meaning(checkpoint, base, head)


def sequence_head(base: BaseModel, asked: str | None) -> Head:
    """What a text's logits are: as asked, else as the base's configuration says, as transformers
    reads it. Raises InputError if it cannot be what is asked."""
    if asked is not None:
        if asked not in get_args(Head):
            raise InputError(f"--head {asked}: is none of {', '.join(get_args(Head))}.")
        if asked == "softmax" and base.num_labels == 1:
            raise InputError(
                "--head softmax: the head has one output, whose probability would always be 1.",
                "Say regression, or sigmoid for a yes or no.",
            )
        return next(one for one in get_args(Head) if one == asked)
    said = _HEADS.get(getattr(base.config, "problem_type", None))
    # As transformers chooses its loss: one output is a number unless the config says otherwise.
    if base.num_labels == 1 and said != "sigmoid":
        return "regression"
    return said or "softmax"


def class_names(checkpoint: Checkpoint, base: BaseModel) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names (the user's, else the checkpoint's: a base's are of another head), and notes."""
    count = base.num_labels
    plain = tuple(f"LABEL_{i}" for i in range(count))
    if checkpoint.labels:
        return checkpoint.labels, ()
    mend = "name the classes with --labels."
    own = _own_names(checkpoint, base, count)
    if own is not None:
        if own == plain:
            return plain, ()
        if all(own) and len(set(own)) == count and all(one == printable(one) for one in own):
            return own, (f"class names are those of the checkpoint's config.json: {_few(own)}.",)
        return plain, (
            f"the checkpoint's config.json names classes twice, not at all, or by controls: {mend}",
        )
    theirs = _names(base.config.id2label, count)
    if theirs is None or theirs == plain:
        return plain, ()
    return plain, (
        f"the classes are called {_few(plain)}: the adapter keeps no names. Base model {base.name} "
        f"has names for another head ({_few(theirs)}), which were not taken; {mend}",
    )


def _own_names(checkpoint: Checkpoint, base: BaseModel, count: int) -> tuple[str, ...] | None:
    """The names in a config.json that was saved with the checkpoint, if they are of the head.

    A class that it leaves out has none.
    """
    folder = checkpoint.weights_file.parent
    if Path(base.name).exists() and folder.resolve() == Path(base.name).resolve():
        return None
    try:
        raw = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    found = raw.get("id2label") if isinstance(raw, dict) else None
    names = _names(found, count)
    return ("",) * count if names is None and _has_gap(found, count) else names


def _names(id2label: Any, count: int) -> tuple[str, ...] | None:
    if not isinstance(id2label, Mapping):
        return None
    names = {str(index): str(name).strip() for index, name in id2label.items()}
    wanted = [str(index) for index in range(count)]
    return tuple(names[i] for i in wanted) if sorted(names) == sorted(wanted) else None


def _has_gap(id2label: Any, count: int) -> bool:
    """Whether names are as many as a head's classes or end with its last, and leave some out."""
    if not isinstance(id2label, Mapping):
        return False
    named, wanted = {str(index) for index in id2label}, {str(index) for index in range(count)}
    return named != wanted and (len(named) == count or str(count - 1) in named < wanted)


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def generation_defaults(base: BaseModel) -> tuple[GenerationOptions, tuple[str, ...]]:
    """How the base chooses tokens unless a request says otherwise, and notes.

    Raises BaseModelError if its file cannot be read or asks for what is out of range.
    """
    config = _load(base)
    given = {k: v for k, v in config.to_dict().items() if v is not None}
    named = given.pop("eos_token_id", None)
    eos, notes = _eos(base, named, base.vocab_size)
    if named is None and eos and not config._from_model_config:
        ids = _few(tuple(map(str, eos)))
        notes.append(
            f"{_FILE} names no EOS token: a row ends at config.json's, {ids}, where "
            "transformers' own generate goes on."
        )
    fields = {name: given[name] for name in GenerationOptions.__struct_fields__ if name in given}
    if fields.get("do_sample") and fields.get("temperature") == 0:
        notes.append(f"{_FILE} asks for sampling at temperature 0: the likeliest token is taken.")
        del fields["do_sample"], fields["temperature"]
    if not fields.get("do_sample"):
        # Nobody reads these then; the ranges are those of a request that asks for sampling.
        for name in _SAMPLING:
            if name in fields and not _in_range(name, fields[name], base.vocab_size):
                del fields[name]
    # transformers' own default of whatever samples: of this model, or of one request.
    fields.setdefault("top_k", _TOP_K)
    try:
        options = msgspec.convert({**fields, "eos_token_ids": eos}, GenerationOptions, strict=False)
        check(options, base.vocab_size)
    except (msgspec.ValidationError, InputError) as error:
        raise BaseModelError(
            f"{base.name}: {_FILE}: {str(error).rstrip('.')}.",
            "transformers would refuse it too, at its first token. Mend the file.",
        ) from error
    return options, (*notes, *_not_kept(given))


def _load(base: BaseModel) -> GenerationConfig:
    """The generation defaults as transformers finds them: in their file, else in config.json."""
    from transformers import GenerationConfig

    def read(**options: Any) -> GenerationConfig:
        with quiet_libraries():
            return GenerationConfig.from_pretrained(base.name, revision=base.revision, **options)

    try:
        return read()
    except OSError as error:
        reason: Exception = error
        if not (Path(base.name) / _FILE).exists():
            try:
                return read(config_file_name="config.json", _from_model_config=True)
            except OSError:
                return GenerationConfig(_from_model_config=True)
            except Exception as other:  # untrusted fields: transformers raises anything
                reason = other
    except Exception as error:  # untrusted fields: transformers raises anything
        reason = error
    raise BaseModelError(
        f"{base.name}: {_FILE} cannot be read ({str(reason).splitlines()[0]}).",
        "Mend the file, or remove it: then nothing but the EOS token of config.json is kept.",
    )


def _in_range(name: str, value: Any, vocab_size: int) -> bool:
    try:
        check(msgspec.convert({name: value}, GenerationOptions, strict=False), vocab_size)
    except (msgspec.ValidationError, InputError):
        return False
    return True


def _eos(base: BaseModel, given: Any, vocab_size: int) -> tuple[tuple[int, ...], list[str]]:
    """The tokens that end a row, and what of them means none."""
    # A part for text has its class's own token where the file names the whole model's.
    for config in (base.config, base.config.get_text_config()):
        if given is None:
            given = getattr(config, "eos_token_id", None)
    found = given if isinstance(given, (list, tuple)) else [] if given is None else [given]
    ids = [one for one in found if isinstance(one, int) and not isinstance(one, bool)]
    if len(ids) != len(found):
        raise BaseModelError(
            f"{base.name}: its eos_token_id is {given!r}, not a token id or a list of them.",
            f"Mend {_FILE} or config.json.",
        )
    known = tuple(dict.fromkeys(one for one in ids if 0 <= one < vocab_size))
    notes = []
    if len(known) < len(set(ids)):
        other = ", ".join(str(one) for one in ids if one not in known)
        notes.append(
            f"eos_token_id {other} is no token of the model, which has {vocab_size}: no row ends "
            "there."
        )
    if not known:
        notes.append(
            "neither generation_config.json nor config.json names an EOS token: a row ends after "
            "max_new_tokens, unless a request gives eos_token_ids or stop."
        )
    return known, notes


def _not_kept(given: Mapping[str, Any]) -> list[str]:
    """What the defaults ask for and an engine does not do, a note for each field."""
    from transformers import GenerationConfig

    notes = []
    for name in vars(GenerationConfig()):
        value = given.get(name)
        kept = name in GenerationOptions.__struct_fields__
        if name.startswith("_") or name in _HARMLESS or kept or _off(name, value):
            continue
        beside = _ONLY_WITH.get(name)
        if beside is not None and _off(beside, given.get(beside)):
            continue
        if name == "max_length" and given.get("max_new_tokens") is not None:
            continue
        if name == "min_length" and given.get("min_new_tokens") is not None:
            continue
        instead = _INSTEAD.get(name, "tokens differ from transformers' own generate there")
        notes.append(
            f"{_FILE} asks for {name}={_shown(value)}, which the engine does not do: {instead}."
        )
    return notes


def _off(name: str, value: Any) -> bool:
    """Whether a field's value does nothing."""
    if isinstance(value, (int, float)):
        return value in _NEUTRAL.get(name, (0,))
    return not value


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
