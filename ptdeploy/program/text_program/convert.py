"""A tokenizer as a program for OpenVINO, text to ids, for C++: the way back needs none."""

from __future__ import annotations

import base64
import functools
import json
import sys
import unicodedata
from importlib import import_module
from pathlib import Path
from typing import Any

from ptdeploy.backends.openvino.core import core
from ptdeploy.backends.telemetry import import_openvino
from ptdeploy.bundle import FileEntry, TokenizerInfo, staged
from ptdeploy.errors import InputError, TargetUnavailable
from ptdeploy.program.text_program.charsmap import charsmap
from ptdeploy.program.text_program.nasty import nasty_texts
from ptdeploy.runtime.tokenizer import Tokenizer

_WITHOUT = "Leave out --cpp-tokenizer: C++ then takes token ids, or the tokenizer that you give it."
# Many characters are normalized at once, with one between them that nothing else becomes.
_BETWEEN, _MANY = "0", 4096
_INSTALL = "pip install 'ptdeploy[cpp-tokenizer]'"


def check_installed() -> None:
    """Raises TargetUnavailable unless OpenVINO's tokenizers are here, for this OpenVINO."""
    try:
        fits = _library().is_openvino_tokenizers_compatible
    except ImportError as error:
        raise TargetUnavailable("openvino-tokenizers is not installed here.", _INSTALL) from error
    if not fits:
        raise TargetUnavailable("openvino-tokenizers is not of this OpenVINO's version.", _INSTALL)


def write_text_program(
    tokenizer: Path, info: TokenizerInfo | None, folder: Path
) -> tuple[FileEntry, ...]:
    """Write the program of a tokenizer.json into `folder`.

    Raises InputError if it would give another id for one of our texts than the tokenizers library
    does, or if C++ cannot make text of ids as that does.
    """
    truth = Tokenizer(tokenizer, info)
    if _searches(json.loads(tokenizer.read_text()).get("decoder")):
        raise InputError(
            "--cpp-tokenizer: this tokenizer's decoder looks for regular expressions, which C++ "
            "does not.",
            _WITHOUT,
        )
    program = convert(tokenizer, info)
    check(program, truth)
    _name(program)
    import_openvino().save_model(program, str(folder / "tokenizer.xml"), compress_to_fp16=False)
    return (
        staged("tokenizer.xml", "tokenizer_program"),
        staged("tokenizer.bin", "tokenizer_weights"),
    )


def convert(tokenizer: Path, info: TokenizerInfo | None) -> Any:
    """The program of a tokenizer.json, an OpenVINO model. Raises InputError if there is none."""
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(tokenizer, info)._tokenizer
    try:
        state = _exact(json.loads(inner.to_str()), inner)
        fast = PreTrainedTokenizerFast(tokenizer_object=type(inner).from_str(json.dumps(state)))
        return _library().convert_tokenizer(fast)
    except Exception as error:  # what it does not know it raises in many ways
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"--cpp-tokenizer: OpenVINO has no program for this tokenizer ({reason}).", _WITHOUT
        ) from error


def check(program: Any, truth: Tokenizer) -> None:
    """Raises InputError on the first of our texts that the program sees otherwise than `truth`."""
    encode = _core_with_tokenizers().compile_model(program, "CPU")
    for text in nasty_texts(sorted(truth.special)):
        ids = truth.encode(text).ids
        found = encode([text])["input_ids"][0].tolist()
        if found != ids:
            raise InputError(
                f"--cpp-tokenizer: OpenVINO's program of this tokenizer gives {text!r} the ids "
                f"{found}; they are {ids}.",
                _WITHOUT,
            )


def _searches(decoder: Any) -> bool:
    """Whether a decoder of a tokenizer.json looks for regular expressions."""
    if not decoder:
        return False
    inner = decoder.get("decoders", [])
    return "Regex" in (decoder.get("pattern") or {}) or any(map(_searches, inner))


def _exact(state: dict[str, Any], inner: Any) -> dict[str, Any]:
    """A tokenizer.json that says character by character what OpenVINO does in its own way.

    BERT's normalizer, where OpenVINO folds case (a final sigma is no other one then), and its
    punctuation, which is that of another Unicode.
    """
    if (state.get("normalizer") or {}).get("type") == "BertNormalizer":
        texts = _normalized(inner.normalizer)
        blob = base64.b64encode(charsmap(texts)).decode()
        steps: list[dict[str, Any]] = [{"type": "Precompiled", "precompiled_charsmap": blob}]
        if inner.normalizer.normalize_str("\0") == "":
            # The map cannot hold it: it ends strings of C.
            steps.insert(0, {"type": "Replace", "pattern": {"Regex": r"\x00"}, "content": ""})
        state["normalizer"] = {"type": "Sequence", "normalizers": steps}
    if (state.get("pre_tokenizer") or {}).get("type") == "BertPreTokenizer":
        alone = "".join(f"\\x{{{ord(one):x}}}" for one in _punctuation(inner.pre_tokenizer))
        splits = ((r"\s+", "Removed"), (f"[{alone}]", "Isolated"))
        state["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": one}, "behavior": how, "invert": False}
                for one, how in splits
            ],
        }
    return state


def _characters() -> list[str]:
    """All but the zero, which ends a string of C, and halves of surrogate pairs."""
    return [chr(n) for n in range(1, sys.maxunicode + 1) if not 0xD800 <= n < 0xE000]


def _normalized(normalizer: Any) -> dict[str, str]:
    """What a normalizer that looks at no neighbours makes of each character that it changes."""
    characters = [one for one in _characters() if one != _BETWEEN]
    changed = {}
    for start in range(0, len(characters), _MANY):
        some = characters[start : start + _MANY]
        texts = normalizer.normalize_str(_BETWEEN.join(some)).split(_BETWEEN)
        changed.update({one: to for one, to in zip(some, texts, strict=True) if to != one})
    return changed


def _punctuation(pre_tokenizer: Any) -> list[str]:
    """The characters that are words of their own."""
    return [
        one
        for one in _characters()
        if unicodedata.category(one)[0] in "PSM"
        and len(pre_tokenizer.pre_tokenize_str(f"a{one}b")) == 3
    ]


def _name(model: Any) -> None:
    """Give its operators names that hang on the model alone, for the same bytes each time."""
    for number, node in enumerate(model.get_ordered_ops()):
        node.set_friendly_name(f"{node.get_type_name()}_{number}")
    for name, port in zip(("given", "found"), (model.inputs[0], model.outputs[0]), strict=True):
        port.set_names({name})


@functools.cache
def _core_with_tokenizers() -> Any:
    one = core()
    one.add_extension(str(_library()._ext_path))
    return one


def _library() -> Any:
    """The module openvino_tokenizers, without what its import changes of openvino's classes.

    It would add its operators to whatever is made of them. Raises ImportError.
    """
    openvino = import_openvino()
    changed = (openvino.Core, import_module("openvino.frontend.frontend").FrontEnd)
    before = [one.__init__ for one in changed]
    try:
        return import_module("openvino_tokenizers")
    finally:
        for one, init in zip(changed, before, strict=True):
            one.__init__ = init
