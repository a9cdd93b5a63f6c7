"""Chat templates against transformers' own rendering."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from ptdeploy import BundleError, InputError
from ptdeploy.runtime.chat import ChatTemplate, load, render, save

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": 'Say <"é"> & go.'},
    {"role": "assistant", "content": "é\n"},
    {"role": "user", "content": "Again?"},
]
TEMPLATES = {
    "chatml": """
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}""",
    "special tokens": "{{ bos_token }}{% for m in messages %}{{ m.content | trim }}{{ eos_token }}"
    "{% endfor %}",
    "loop controls and json": """{% for m in messages %}
  {% if m.role == 'system' %}{% continue %}{% endif %}
  {{ m | tojson }}{{ m | tojson(indent=2) }}
  {% if loop.index > 2 %}{% break %}{% endif %}
{% endfor %}""",
    "generation block": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "no tools": "{% if tools is not none and tools %}tools{% else %}none{% endif %}"
    "{% if documents is defined and documents %}documents{% endif %}",
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_rendered_as_transformers_does(name, add_generation_prompt, tmp_path):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>")),
        **SPECIAL,
    )
    want = tokenizer.apply_chat_template(
        MESSAGES,
        chat_template=TEMPLATES[name],
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
    )
    path = tmp_path / save(ChatTemplate(TEMPLATES[name], SPECIAL), tmp_path)
    assert render(load(path), MESSAGES, add_generation_prompt) == want


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages.append(1) }}", "not safely callable|SecurityError|unsafe"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages[0].content + 1 }}", "concatenate"),
    ],
)
def test_a_template_that_fails_or_reaches_out_is_refused(template, reason):
    with pytest.raises(InputError, match=reason):
        render(ChatTemplate(template, {}), MESSAGES)


@pytest.mark.parametrize("messages", [[], ["hello"], [{"content": "no role"}]])
def test_what_is_no_conversation_is_refused(messages):
    with pytest.raises(InputError, match="list of messages"):
        render(ChatTemplate("", {}), messages)


@pytest.mark.parametrize("content", [b"{", b'{"template": 1}', b"\xff", b"[]"])
def test_a_damaged_file_is_refused(content, tmp_path):
    (tmp_path / "chat_template.json").write_bytes(content)
    with pytest.raises(BundleError, match="not a chat template"):
        load(tmp_path / "chat_template.json")
