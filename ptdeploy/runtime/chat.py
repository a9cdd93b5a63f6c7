"""A model's chat template, rendered as transformers renders it and without it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from ptdeploy.errors import BundleError, InputError

CHAT_TEMPLATE_NAME = "chat_template.json"


class ChatTemplate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Jinja template and the special tokens it may name, such as `bos_token`."""

    template: str
    special_tokens: dict[str, str]


def save(template: ChatTemplate, folder: Path) -> str:
    """Write `chat_template.json` into `folder` and return its name."""
    (folder / CHAT_TEMPLATE_NAME).write_bytes(msgspec.json.encode(template) + b"\n")
    return CHAT_TEMPLATE_NAME


def load(path: Path) -> ChatTemplate:
    """Read what `save` wrote. Raises BundleError if it is something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ChatTemplate)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: not a chat template ({error}).") from None


def render(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = True,
) -> str:
    """The text of a conversation: messages with `role` and `content`, oldest first.

    With `add_generation_prompt` it ends where the model's answer begins. The template comes from
    a file, so it runs in Jinja's sandbox. Source: transformers' utils/chat_template_utils.py.
    Raises InputError with the template's own reason if it refuses the messages.
    """
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The `generation` block of training templates, which changes no text."""

        tags = {"generation"}  # noqa: RUF012  (Jinja's own declaration)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    if not messages or not all(isinstance(one, Mapping) and "role" in one for one in messages):
        raise InputError(
            "A conversation is a list of messages, each with a role and its content.",
            'For example [{"role": "user", "content": "Hello"}].',
        )
    try:
        return environment.from_string(template.template).render(
            messages=[dict(one) for one in messages],
            add_generation_prompt=add_generation_prompt,
            tools=None,
            documents=None,
            **template.special_tokens,
        )
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"The chat template refuses these messages: {error}.") from None


def _tojson(value: Any, **options: Any) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    allowed = ("ensure_ascii", "indent", "separators", "sort_keys")
    chosen = {"ensure_ascii": False, **{k: v for k, v in options.items() if k in allowed}}
    return json.dumps(value, **chosen)


def _refuse(message: str) -> str:
    import jinja2

    raise jinja2.TemplateError(message)
