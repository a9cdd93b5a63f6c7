"""A tokenizer of single characters, for bases that have none."""

from __future__ import annotations

from pathlib import Path

import tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = [*"abcdefghijklmnopqrstuvwxyz .,:!?'@-()", "0", "1", "2", "3", "4", "5"]
TEMPLATES = {
    "default": "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}no thoughts{% endif %}",
    "tool_use": "{{ tools[0].name }}: {{ messages[0].content }}",
}
SPECIAL = ["[PAD]", "[UNK]", "</s>", "[CLS]", "[SEP]"]


def add_tokenizer(folder: Path, wrap: bool) -> None:
    """A character tokenizer, with [CLS] and [SEP] around the text if `wrap`; it pads and cuts."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *WORDS])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.normalizer = tokenizers.normalizers.Lowercase()
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    inner.decoder = tokenizers.decoders.Fuse()
    if wrap:
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 3), ("[SEP]", 4)]
        )
    # Real files carry such settings; neither may reach an engine.
    inner.enable_padding(length=32)
    inner.enable_truncation(8)
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>"
    )
    if not wrap:
        made.chat_template = TEMPLATES
    made.save_pretrained(folder)
