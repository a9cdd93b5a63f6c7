"""A model's chat template, rendered as transformers renders it and without it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ptdeploy.arguments import listed, shown
from ptdeploy.errors import BundleError, InputError
from ptdeploy.runtime.tokenizer import unicode_text

CHAT_TEMPLATE_NAME = "chat_template.json"


class ChatTemplate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Jinja template and the special tokens it may name, such as `bos_token`.

    A model may have further ones by name. `template` is its default, None where it has none.
    """

    template: str | None
    special_tokens: dict[str, str]
    named: dict[str, str] = {}


def save(template: ChatTemplate, folder: Path) -> str:
    """Write `chat_template.json` into `folder` and return its name."""
    (folder / CHAT_TEMPLATE_NAME).write_bytes(msgspec.json.encode(template) + b"\n")
    return CHAT_TEMPLATE_NAME


def load(path: Path) -> ChatTemplate:
    """Read what `save` wrote. Raises BundleError if it is something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ChatTemplate)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: not a chat template ({error}).") from error


def render(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    /,
    add_generation_prompt: bool = True,
    *,
    chat_template: str | None = None,
    continue_final_message: bool | str = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> str:
    """The text of a conversation: messages with `role` and `content`, oldest first.

    With `add_generation_prompt` it ends where the model's answer begins; with
    `continue_final_message` within the last message (its `content`, or the field that is named).
    `tools` (as JSON schemas), `documents` and any other keyword are variables of the template, as
    for transformers' `apply_chat_template`; `chat_template` names one of several. What a template
    sees is plain data, and it runs in Jinja's sandbox, since it comes from a file.
    Source: transformers' utils/chat_template_utils.py.
    Raises InputError with the template's own reason if it refuses the messages, and for what is no
    template variable or no plain data.
    """
    source = _chosen(template, chat_template, tools is not None)
    given = {name: _plain(value, name) for name, value in variables.items()}
    for name in given:
        if name in _NO_VARIABLES:
            raise InputError(f"{name} is no variable of a chat template.", _NO_VARIABLES[name])
    chat = _messages(messages)
    if continue_final_message:
        if add_generation_prompt:
            raise InputError(
                "A conversation is continued or answered, not both.",
                "With continue_final_message give add_generation_prompt=False.",
            )
        key = continue_final_message if isinstance(continue_final_message, str) else "content"
        final = _mark_end(chat[-1], key, source)
    text = _run(
        source,
        {
            "messages": chat,
            "add_generation_prompt": add_generation_prompt,
            "tools": _each(tools, "tools"),
            "documents": _each(documents, "documents"),
            **template.special_tokens,
            **given,
        },
    )
    if continue_final_message:
        text = _until_end(text, final)
    return unicode_text(text, "The conversation")


# Parameters of apply_chat_template that say what becomes of the text.
_IDS_FIX = "chat_text gives the text, chat_ids its token ids."
_NO_VARIABLES = {
    "messages": "Give the messages first.",
    "conversation": "Give the messages first.",
    **dict.fromkeys(("tokenize", "return_dict", "return_tensors", "tokenizer_kwargs"), _IDS_FIX),
    **dict.fromkeys(("padding", "truncation", "max_length"), _IDS_FIX),
    **dict.fromkeys(("return_assistant_tokens_mask", "sanitize_control_tokens"), _IDS_FIX),
}
# Of the values in a message, as in JSON.
_DEPTH = 200
_MOST_DATE = 1000  # of its format
_END = "CONTINUE_FINAL_MESSAGE_TAG "
# Names of a message's reasoning; templates read the first, gpt-oss's the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")


def _run(source: str, variables: dict[str, Any]) -> str:
    from jinja2.ext import Extension, loopcontrols

    from ptdeploy.runtime.template_limits import BoundedEnvironment, joined

    class Generation(Extension):
        """The `generation` block of training templates, which changes no text."""

        tags = {"generation"}  # noqa: RUF012  (Jinja's own declaration)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.bound_filters()
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    try:
        return joined(environment.from_string(source).generate(variables))
    except Exception as error:  # whatever the template's own code does
        reason = str(error)[:200] or type(error).__name__
        raise InputError(f"The chat template refuses these messages: {reason}.") from error


def _chosen(template: ChatTemplate, name: str | None, tools: bool) -> str:
    names = [*(["default"] if template.template is not None else []), *template.named]
    if name is None:
        name = "tool_use" if tools and "tool_use" in template.named else "default"
    if name not in names:
        raise InputError(
            f"The model has no chat template {shown(name)}; it has {', '.join(names) or 'none'}.",
            "Name one of those with chat_template=: a template itself is not taken.",
        )
    source = template.named.get(name, template.template)
    assert source is not None, "it is among the names"
    return source


def _messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    given = listed("messages", messages)
    if not given:
        raise InputError(*_NO_CONVERSATION)
    chat: list[dict[str, Any]] = []
    for one in given:
        plain = _plain(one, "messages")
        if not isinstance(plain, dict) or "role" not in plain:
            raise InputError(*_NO_CONVERSATION)
        # Servers send content and tool_calls as null, which templates would print or fail at.
        message = {key: value for key, value in plain.items() if value is not None}
        if not message.keys() - {"role", "name"}:
            raise InputError(f"Message {len(chat)} ({message.get('role')!r}) says nothing.", _SAID)
        reasoning = next((message[key] for key in _REASONING if key in message), None)
        if reasoning is not None:
            message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
        chat.append(message)
    return chat


_SAID = "Give its content; a call of tools may do without."
_NO_CONVERSATION = (
    "A conversation is a list of messages, each with a role and its content.",
    'For example [{"role": "user", "content": "Hello"}].',
)


def _each(values: Any, name: str) -> list[Any] | None:
    """Tools or documents, as plain data."""
    if values is None:
        return None
    if not isinstance(values, list | tuple):
        raise InputError(f"{name} is {type(values).__name__}, not a list.")
    for one in values:
        if callable(one):
            raise InputError(
                f"{name} holds the function {getattr(one, '__name__', one)!r}, not a JSON schema.",
                "transformers.utils.get_json_schema makes one where transformers is installed.",
            )
        if not isinstance(one, Mapping):
            raise InputError(f"{name} holds {type(one).__name__}, not a dictionary.")
    return [_plain(one, name) for one in values]


def _plain(value: Any, name: str, depth: int = 0) -> Any:
    """A copy of plain data: a template must not reach the methods of its caller's objects."""
    if depth > _DEPTH:
        raise InputError(f"{name} holds lists in lists, more than {_DEPTH} deep.")
    if value is None or isinstance(value, bool):
        return value
    # Of a subclass the plain part: enumerations and the like have methods.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    # Of some types, as longdouble, the item is of that type again.
    if isinstance(value, np.generic) and not isinstance(item := value.item(), np.generic):
        return _plain(item, name)
    if isinstance(value, Mapping):
        return {_key(key, name): _plain(item, name, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, name, depth + 1) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {one.name: _plain(getattr(value, one.name), name, depth + 1) for one in fields}
    if callable(dump := getattr(value, "model_dump", None)) and not isinstance(value, type):
        return _plain(dump(), name, depth + 1)
    raise InputError(
        f"{name} holds a {type(value).__name__}; a chat template takes plain data.",
        "Give strings, numbers, lists and dictionaries.",
    )


def _key(key: Any, name: str) -> Any:
    plain = _plain(key, name)
    if isinstance(plain, list | dict):
        raise InputError(
            f"{name} holds a dictionary with a {type(key).__name__} as a key.",
            "Give strings or numbers as keys, as in JSON.",
        )
    return plain


def _mark_end(message: dict[str, Any], key: str, source: str) -> str:
    """Put a mark behind the message's text, and give the text."""
    final = message.get(key)
    fields = [key]
    if key in _REASONING:
        fields = [one for one in _REASONING if message.get(one) == final]
    if final is None or not any(one in source for one in fields):
        raise InputError(f"The last message has no {key!r} that the chat template continues.")
    if isinstance(final, list):
        for block in reversed(final):
            if isinstance(block, dict) and isinstance(block.get("text"), str):
                text: str = block["text"]
                block["text"] = text + _END
                return text
    if not isinstance(final, str):
        raise InputError("The last message has no text to continue.")
    for one in fields:
        message[one] = final + _END
    return final


def _until_end(text: str, final: str) -> str:
    place = text.rfind(_END.strip())
    if place < 0 or final.strip() not in text:
        raise InputError("The chat template changes the last message, so it cannot be continued.")
    # A template that trims the message trims the mark's blank with it.
    return text[:place] if text[place:].startswith(_END) else text[:place].rstrip()


def _tojson(value: Any, **options: Any) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    allowed = ("ensure_ascii", "indent", "separators", "sort_keys")
    chosen = {"ensure_ascii": False, **{k: v for k, v in options.items() if k in allowed}}
    return json.dumps(value, **chosen)


def _now(form: str) -> str:
    import jinja2

    # Each of its letters may become a text of many.
    if len(form) > _MOST_DATE:
        raise jinja2.TemplateError(f"it asks for a date of more than {_MOST_DATE} letters")
    return datetime.now().strftime(form)


def _refuse(message: str) -> str:
    import jinja2

    raise jinja2.TemplateError(message)
