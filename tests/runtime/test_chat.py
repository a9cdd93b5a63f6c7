"""Chat templates against transformers' own rendering."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass

import numpy as np
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


BIG = "{% set a = 'a' * 16000000 %}"
NESTED = "{% set a = ['b'] %}" + "{% set a = [a, a] %}" * 60


@pytest.mark.parametrize(
    "template",
    [
        "{{ [1]|tojson(indent=200000000) }}",
        "{{ [[[1]]]|tojson(indent='                ' * 900000) }}",
        "{{ ([1]|batch(30000000, 2)|list)[0]|length }}",
        "{{ [1]|slice(3000000)|list|length }}",
        "{{ lipsum(n=16000000) }}",
        BIG + "{{ a|replace('a', 'b' * 1000) }}",
        BIG + "{{ a.replace('a', 'b' * 1000) }}",
        BIG + "{{ a.encode().replace('a'.encode(), a.encode()) }}",
        BIG + "{{ [1, 2, 3]|join(a) }}",
        BIG + "{{ a.join(['1', '2', '3']) }}",
        BIG + "{{ ([a] * 9)|join }}",
        BIG + "{{ [a] * 9 }}",
        BIG + "{{ ([a] * 9) ~ '' }}",
        BIG + "{{ ([a] * 9)|string }}",
        BIG + "{{ ([a] * 9)|upper }}",
        BIG + "{{ ([a] * 9)|tojson }}",
        BIG + "{{ ([a] * 9)|map('list')|map('string')|join|length }}",
        BIG + "{{ ('{0}' * 9).format(a) }}",
        BIG + "{{ ('%s' * 2) % (a, a) }}",
        BIG + "{{ ('%s' * 2)|format(a, a) }}",
        BIG + "{% set b %}{{ a }}{{ a }}{% endset %}{{ b|length }}",
        BIG + "{% macro m() %}{{ a }}{{ a }}{% endmacro %}{{ m()|length }}",
        BIG + "{{ {'k': a, 'l': a}.items() }}",
        BIG + "{% set n = namespace(a=a, b=a) %}{{ n }}",
        BIG + "{{ ([(a|list)] * 9)|sum(start=[])|length }}",
        "{{ '%0999999999d'|format(1) }}",
        "{{ ('\\n' * 1000000)|indent(10000000) }}",
        "{{ ('x ' * 1000000)|wordwrap(1, wrapstring='y' * 1000) }}",
        "{{ ('\\t' * 1000000).expandtabs(10000) }}",
        "{{ ('a' * 1000000).translate({97: 'b' * 1000}) }}",
        "{{ ('a'.encode() * 10000000000)|length }}",
        "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
        NESTED + "{{ a }}",
        NESTED + "{{ a|tojson }}",
        NESTED + "{{ a|pprint }}",
    ],
)
def test_what_would_make_too_long_a_text_is_refused_before_it_is_made(template):
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"it (makes|asks|writes) |lipsum. is undefined"):
            render(ChatTemplate(template, {}), MESSAGES)
        assert tracemalloc.get_traced_memory()[1] < 600e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("messages", [[], ["hello"], [{"content": "no role"}]])
def test_what_is_no_conversation_is_refused(messages):
    with pytest.raises(InputError, match="list of messages"):
        render(ChatTemplate("", {}), messages)


@dataclass(frozen=True)
class Named:
    name: str


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({("a", "b"): 1}, "a tuple as a key"),
        ({Named("a"): 1}, "a Named as a key"),
        ({np.longdouble(1): 1}, "a longdouble"),
        (np.longdouble(1), "a longdouble"),
        ([object()], "a object"),
    ],
)
def test_what_is_no_plain_data_is_refused(value, reason):
    with pytest.raises(InputError, match=reason):
        render(ChatTemplate("{{ x }}", {}), MESSAGES, x=value)


@pytest.mark.parametrize("message", [{"role": "user"}, {"role": "user", "content": None}])
def test_a_message_that_says_nothing_is_refused(message):
    with pytest.raises(InputError, match=r"Message 1 \('user'\) says nothing"):
        render(ChatTemplate("{{ messages|length }}", {}), [MESSAGES[0], message])
    calling = {"role": "assistant", "content": None, "tool_calls": []}
    assert render(ChatTemplate("{{ messages|length }}", {}), [MESSAGES[0], calling]) == "2"


@pytest.mark.parametrize("content", [b"{", b'{"template": 1}', b"\xff", b"[]"])
def test_a_damaged_file_is_refused(content, tmp_path):
    (tmp_path / "chat_template.json").write_bytes(content)
    with pytest.raises(BundleError, match="not a chat template"):
        load(tmp_path / "chat_template.json")


SCHEMA = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'Says <what> it "is".',
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}
VARIED = """
{%- if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}
{%- if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}
{%- for one in documents or [] %}[{{ one.title }}: {{ one.text }}]{% endfor %}
{%- for m in messages %}{{ m.role }}={{ m.content if m.content is defined else 'nothing' }}
{%- if m.reasoning_content is defined %}({{ m.reasoning_content }}){% endif %}
{%- for call in m.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %};
{%- endfor %}
{%- if level is defined %}{{ level }} {{ bos_token }}{% endif %}
{%- set found = namespace(last=none) %}{% set found.last = messages[-1].role %}{{ found.last }}
{%- if add_generation_prompt %}assistant={% endif %}"""
CALLED = [
    {"role": "user", "content": "Weather?", "name": None},
    {
        "role": "assistant",
        "content": None,
        "thinking": "hm",
        "tool_calls": [{"function": {"name": "weather", "arguments": {"place": "Köln"}}}],
    },
    {"role": "tool", "content": "rain"},
]


def _theirs(template):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>")),
        **SPECIAL,
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"enable_thinking": False},
        {"enable_thinking": True, "level": 3},
        {"tools": [SCHEMA]},
        {"tools": []},
        {"documents": [{"title": "A", "text": "<b>"}], "level": [1, {"two": None}]},
        {"bos_token": "<<s>>", "level": 1.5},
        {"add_generation_prompt": False},
    ],
)
def test_template_variables_are_passed_as_transformers_passes_them(variables):
    asked = {"add_generation_prompt": True, **variables}
    want = _theirs(VARIED).apply_chat_template(CALLED, tokenize=False, **asked)
    assert render(ChatTemplate(VARIED, SPECIAL), CALLED, **asked) == want


@pytest.mark.parametrize(
    ("content", "body"),
    [
        ("Once upon", "{{ m.content }}"),
        ("Once ", "{{ m.content }}"),
        ("Once ", "{{ m.content | trim }}"),
        ([{"type": "text", "text": "Once"}], "{{ m.content[0].text }}"),
    ],
)
def test_the_last_message_is_continued_as_transformers_does(content, body):
    template = "{% for m in messages %}{{ m.role }}: " + body + "</s>{% endfor %}"
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": content},
    ]
    want = _theirs(template).apply_chat_template(
        messages, tokenize=False, continue_final_message=True
    )
    got = render(ChatTemplate(template, {}), messages, False, continue_final_message=True)
    assert got == want
    assert messages[1]["content"] == content, "the caller's messages stay as they are"


def test_one_of_several_templates_is_taken_as_transformers_takes_it(tmp_path):
    templates = {"default": "plain", "tool_use": "tools", "rag": "documents"}
    theirs = _theirs(templates)
    ours = ChatTemplate("plain", SPECIAL, {"tool_use": "tools", "rag": "documents"})
    ours = load(tmp_path / save(ours, tmp_path))
    for asked in ({}, {"tools": [SCHEMA]}, {"chat_template": "rag"}):
        want = theirs.apply_chat_template(MESSAGES, tokenize=False, **asked)
        assert render(ours, MESSAGES, **asked) == want
    with pytest.raises(InputError, match="no chat template 'other'; it has default, tool_use, rag"):
        render(ours, MESSAGES, chat_template="other")
    with pytest.raises(InputError, match="no chat template 'default'; it has rag"):
        render(ChatTemplate(None, {}, {"rag": "documents"}), MESSAGES)


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"tools": [len]}, "holds the function 'len'"),
        ({"tools": 5}, "tools is int, not a list"),
        ({"documents": ["text"]}, "documents holds str"),
        ({"messages": []}, "messages is no variable"),
        ({"tokenize": False}, "no variable of a chat template"),
        ({"conversation": []}, "no variable of a chat template"),
        ({"level": object()}, "holds a object"),
        ({"documents": [{"text": b"raw"}]}, "holds a bytes"),
        ({"continue_final_message": True}, "not both"),
        ({"continue_final_message": "other", "add_generation_prompt": False}, "no 'other'"),
        ({"level": "\ud83d"}, "surrogate pair"),
    ],
)
def test_what_is_no_template_variable_is_refused(variables, reason):
    with pytest.raises(InputError, match=reason):
        render(ChatTemplate("{{ level }}{{ messages[0].content }}", {}), MESSAGES, **variables)


@pytest.mark.parametrize("body", ["{{ 1 // 0 }}", "{{ range(10 ** 9) | list }}", "{{ [][1].a }}"])
def test_whatever_a_templates_own_code_does_is_a_refusal(body):
    with pytest.raises(InputError, match="refuses these messages"):
        render(ChatTemplate(body, {}), MESSAGES)
