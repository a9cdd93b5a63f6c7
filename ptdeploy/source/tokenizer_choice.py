"""Which tokenizer a bundle gets: one that was asked for, else the checkpoint's, else the base's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptdeploy.bundle import TokenizerInfo
from ptdeploy.errors import InputError, PtdeployError
from ptdeploy.runtime.tokenizer import clean_up
from ptdeploy.source.base import BaseModel, quiet_libraries
from ptdeploy.source.checkpoint import Checkpoint
from ptdeploy.source.probe_texts import probe_texts
from ptdeploy.source.tokenizer_place import (
    NONE,
    Origin,
    Place,
    broken,
    needs,
    refuse_cut_merges,
    refuse_unreadable,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class ChosenTokenizer:
    """The tokenizer of a bundle, or why it takes token ids only, which the notes then say.

    `tokenizer` is transformers', and one that the `tokenizers` library can run: a bundle has no
    transformers. `place` is the folder or hub id it came from, `text_ids` what it makes of the
    probe `texts`.
    """

    tokenizer: PreTrainedTokenizerFast | None = field(default=None, repr=False)
    info: TokenizerInfo | None = None
    place: str = ""
    notes: tuple[str, ...] = ()
    texts: tuple[str, ...] = field(default=(), repr=False)
    text_ids: tuple[tuple[int, ...], ...] = field(default=(), repr=False)

    def refuse(self, problem: str, fix: str = "") -> PtdeployError:
        """The error that blames whoever brought it."""
        assert self.info is not None
        return Place(self.info.origin, self.place).refuse(problem, fix)


def choose_tokenizer(
    checkpoint: Checkpoint, base: BaseModel, asked: str | None = None
) -> ChosenTokenizer:
    """Load the tokenizer that was asked for, else the checkpoint's own, else the base model's.

    `asked` is a folder, a hub id, or "none". transformers itself reads each place, in whatever
    files it keeps a tokenizer. Raises CheckpointError, BaseModelError or InputError, by whose it
    is, if one is there and cannot be read (another would give other ids), or gives ids that the
    model has no embedding for.
    """
    if asked == NONE:
        return ChosenTokenizer(notes=(f"--tokenizer {NONE}: the bundle takes token ids only.",))
    places = _asked(asked, base) if asked is not None else _places(checkpoint, base)
    for place in places:
        found = _load(place)
        if found is not None:
            return _segmented(_embedded(found, base), base)
    where = " or ".join(dict.fromkeys(place.name for place in places))
    if asked is not None:
        raise InputError(
            f"--tokenizer {asked}: there is no tokenizer in {where}{_offline(places)}.",
            f"Pass a folder or hub id that AutoTokenizer reads, or {NONE}.",
        )
    return ChosenTokenizer(
        notes=(
            f"no tokenizer was found in {where}{_offline(places)}: the bundle takes token ids "
            "only.",
        )
    )


def _embedded(chosen: ChosenTokenizer, base: BaseModel) -> ChosenTokenizer:
    """The tokenizer, if the model has an embedding for each of its tokens.

    A base model may itself have a few special tokens too many, which text seldom holds: that is a
    note. Raises the error of whoever brought the tokenizer for any other token without one.
    """
    if chosen.tokenizer is None or chosen.info is None:
        return chosen
    rows = base.vocab_size
    beyond = {token: i for token, i in chosen.tokenizer.get_vocab().items() if i >= rows}
    if not beyond:
        return replace(chosen, notes=(*chosen.notes, *_cut_vocabulary(chosen, rows)))
    words = _tokens(beyond)
    if not _base_has(chosen, base, beyond):
        fixes = {
            "checkpoint": "Save the adapter again with save_pretrained(..., save_embedding_layers="
            "True), which keeps the embedding it was trained with; if the tokens are never used, "
            f"take the base model's tokenizer with --tokenizer {base.name}.",
            "base": "It is another model's tokenizer, or its embedding was resized and not saved.",
            "given": "It is another model's tokenizer.",
        }
        raise chosen.refuse(
            f"{chosen.place}: its tokenizer has {len(beyond)} token{'s'[: len(beyond) > 1]} that "
            f"the model has no embedding for: {words}; the embedding has {rows} rows.",
            fixes[chosen.info.origin],
        )
    note = f"the base model has no embedding for {words}: text that holds one is refused."
    return replace(chosen, notes=(*chosen.notes, note))


def _segmented(chosen: ChosenTokenizer, base: BaseModel) -> ChosenTokenizer:
    """The tokenizer, with a note where it keeps back segments that the model tells apart."""
    tokenizer, info = chosen.tokenizer, chosen.info
    if tokenizer is None or info is None or info.gives_token_type_ids or not base.type_vocab_size:
        return chosen
    if not any(tokenizer.backend_tokenizer.encode("a", "b").type_ids):
        return chosen
    note = (
        f"the tokenizer in {chosen.place} gives no token_type_ids, though its tokenizer.json has "
        "some for two texts: each token of a pair has segment 0, as transformers has it. If the "
        'model was trained with segments, list "token_type_ids" in model_input_names of its '
        "tokenizer_config.json."
    )
    return replace(chosen, notes=(*chosen.notes, note))


def _asked(asked: str, base: BaseModel) -> list[Place]:
    path = Path(asked).expanduser()
    if path.is_file():
        if path.name != "tokenizer.json":
            raise InputError(f"--tokenizer {asked}: is a file.", "Pass the folder that it lies in.")
        path = path.parent
    elif not path.exists() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", asked):
        raise InputError(
            f"--tokenizer {asked}: no such folder.",
            "Pass the folder of a tokenizer.json, or leave --tokenizer out.",
        )
    return [_place("given", str(path), None, base)]


def _places(checkpoint: Checkpoint, base: BaseModel) -> list[Place]:
    """Where it may be, first things first: beside the weights, then where Trainer puts it too."""
    if checkpoint.is_base:
        return [_place("base", base.name, base.revision, base)]
    own = [checkpoint.weights_file.parent]
    if checkpoint.path.is_dir():
        own.append(checkpoint.path)
    for folder in list(own):
        if re.fullmatch(r"checkpoint-\d+", folder.absolute().name):
            own.append(folder.absolute().parent)
    places = [
        _place("checkpoint", str(folder), None, base)
        for folder in dict.fromkeys(own)
        if not _same(folder, base.name)
    ]
    return [*places, _place("base", base.name, base.revision, base)]


def _place(origin: Origin, name: str, revision: str | None, base: BaseModel) -> Place:
    # An adapter's folder does not say what model it is for, which tells vocab.txt's class.
    path = Path(name)
    alone = path.is_dir() and not (path / "config.json").is_file()
    return Place(origin, name, revision, base.config if alone else None)


def _same(folder: Path, name: str) -> bool:
    return Path(name).is_dir() and folder.resolve() == Path(name).resolve()


def _load(place: Place) -> ChosenTokenizer | None:
    """What transformers makes of a place, None where no tokenizer is."""
    from transformers import AutoTokenizer

    if place.folder is not None:
        if not place.files():
            return None
        refuse_unreadable(place, place.folder)
    options = {"config": place.config} if place.config is not None else {}
    try:
        with quiet_libraries():
            tokenizer: Any = AutoTokenizer.from_pretrained(
                place.name, revision=place.revision, trust_remote_code=False, **options
            )
    except Exception as error:  # the Rust side raises plain Exception, untrusted fields anything
        files = place.files()
        if not files:
            return None
        if reason := needs(files, error):
            return _ids_only(place, reason)
        raise broken(place, files, error) from error
    kind = type(tokenizer).__name__
    if not getattr(tokenizer, "is_fast", False):
        return _ids_only(place, f"{kind} runs in Python alone")
    wanted = {"tokenizer.json", *filter(None, (tokenizer.vocab_files_names or {}).values())}
    files = place.files() if place.folder is not None else []
    if not wanted & set(files) and not any(place.has(name) for name in sorted(wanted)):
        if not (files := place.files()):
            return None
        # transformers makes one of a handful of tokens then, and says nothing.
        raise place.refuse(
            f"{place.name}: has {', '.join(files)} but no vocabulary: none of "
            f"{', '.join(sorted(wanted))} is there.",
            "Copy it there.",
        )
    refuse_cut_merges(place, files)
    try:
        return _as_found(tokenizer, place)
    except PtdeployError:
        raise
    except Exception as error:  # as of a vocabulary without the token for unknown words
        raise broken(place, files or place.files(), error) from error


def _as_found(tokenizer: Any, place: Place) -> ChosenTokenizer:
    notes = []
    model = tokenizer.backend_tokenizer.model
    if getattr(model, "dropout", None):
        # It is for training: the same text would be other tokens each time.
        model.dropout = None
        notes.append(f"the tokenizer in {place.name} drops merges at random (dropout): left out.")
    if tokenizer.init_kwargs.get("auto_map"):
        notes.append(
            f"the tokenizer in {place.name} names code of its own (auto_map), which is never run: "
            f"transformers' {type(tokenizer).__name__} was taken."
        )
    # transformers cleans up nothing that BPE made, unless told to spoil it.
    cleans = tokenizer.clean_up_tokenization_spaces and (
        type(model).__name__ != "BPE"
        or tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output
    )
    info = TokenizerInfo(
        origin=place.origin,
        type=type(tokenizer).__name__,
        size=len(tokenizer),
        split_special_tokens=bool(tokenizer.split_special_tokens),
        clean_up_tokenization_spaces=bool(cleans),
        gives_token_type_ids="token_type_ids" in tokenizer("a", "b"),
    )
    return _probed(ChosenTokenizer(tokenizer, info, place.name, tuple(notes)))


def _probed(chosen: ChosenTokenizer) -> ChosenTokenizer:
    """The tokenizer with what it makes of a few texts, held against its tokenizer.json alone.

    That is all a bundle has of it. Raises the place's error where transformers does more in Python.
    """
    import tokenizers

    assert chosen.tokenizer is not None
    assert chosen.info is not None
    alone = tokenizers.Tokenizer.from_str(chosen.tokenizer.backend_tokenizer.to_str())
    alone.no_padding()
    alone.no_truncation()
    alone.encode_special_tokens = chosen.info.split_special_tokens
    texts = probe_texts(alone)
    encoded = []
    for text in texts:
        theirs, ours = list(chosen.tokenizer(text)["input_ids"]), alone.encode(text).ids
        if theirs != ours:
            raise chosen.refuse(
                f"{chosen.place}: {chosen.info.type} does more than its tokenizer.json says, which "
                f"is all that a bundle has: {text[:60]!r} is {_ids(theirs)} by transformers and "
                f"{_ids(ours)} without it."
            )
        decoded = chosen.tokenizer.decode(theirs, skip_special_tokens=True)
        again = str(alone.decode(ours, skip_special_tokens=True))
        if decoded != (clean_up(again) if chosen.info.clean_up_tokenization_spaces else again):
            raise chosen.refuse(
                f"{chosen.place}: {chosen.info.type} does more than its tokenizer.json says, which "
                f"is all that a bundle has: the ids of {text[:60]!r} are {decoded[:60]!r} by "
                f"transformers and {again[:60]!r} without it."
            )
        encoded.append(tuple(theirs))
    return replace(chosen, texts=texts, text_ids=tuple(encoded))


def _ids_only(place: Place, reason: str) -> ChosenTokenizer:
    note = f"the bundle takes token ids only: of the tokenizer in {place.name}, {reason}."
    return ChosenTokenizer(place=place.name, notes=(note,))


def _base_has(chosen: ChosenTokenizer, base: BaseModel, beyond: dict[str, int]) -> bool:
    """Whether all those are added tokens of the base model's own tokenizer, and rare in text."""
    assert chosen.tokenizer is not None
    assert chosen.info is not None
    own = chosen
    if chosen.info.origin != "base":
        own = _load(_place("base", base.name, base.revision, base)) or ChosenTokenizer()
    if own.tokenizer is None:
        return False
    added = own.tokenizer.get_added_vocab()
    always = set(chosen.tokenizer("a")["input_ids"])
    return beyond.items() <= added.items() and not always & set(beyond.values())


def _cut_vocabulary(chosen: ChosenTokenizer, rows: int) -> tuple[str, ...]:
    """A note where lines of a vocab.txt seem to be lost: unlike JSON it shows no end."""
    assert chosen.tokenizer is not None
    folder, size = Path(chosen.place), len(chosen.tokenizer)
    if not (folder / "vocab.txt").is_file() or (folder / "tokenizer.json").is_file():
        return ()
    if rows - size <= max(128, rows // 20):
        return ()
    return (
        f"{folder / 'vocab.txt'}: has {size} tokens, and the model {rows} embeddings. If it was "
        "cut short, words are lost.",
    )


def _tokens(found: dict[str, int]) -> str:
    ordered = sorted(found.items(), key=lambda item: item[1])
    words = [f"{token!r} ({i})" for token, i in ordered[:4]]
    return ", ".join(words) + (f" and {len(ordered) - 4} more" if len(ordered) > 4 else "")


def _offline(places: Sequence[Place]) -> str:
    from huggingface_hub import is_offline_mode

    if is_offline_mode() and any(place.folder is None for place in places):
        return " (offline, so only the hub's cache was looked at)"
    return ""


def _ids(ids: Sequence[int]) -> str:
    return f"[{', '.join(map(str, ids[:12]))}{', ...' if len(ids) > 12 else ''}]"
