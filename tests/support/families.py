"""A tiny tokenizer of each family, trained on a few sentences: `families.make("metaspace")`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXTS = (
    "the cat sat on the mat and the dog ran over a hill to see the sea",
    "she said that he was not at home, so they went away before night came.",
    "one two three four five six seven eight nine ten; good bad great poor",
    "it's what we don't know: naïve café, Straße, Ελλάδα, 東京",
)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
BERT_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
# As BertTokenizer has them; the class that any tokenizer.json is of leaves the segments out.
BERT_INPUTS = ["input_ids", "token_type_ids", "attention_mask"]


def wordpiece() -> Tokenizer:
    """As BERT's: words in pieces, [CLS] and [SEP] around one text or two."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(
        TEXTS,
        trainers.WordPieceTrainer(vocab_size=200, special_tokens=list(BERT_SPECIAL.values())),
    )
    made.post_processor = processors.TemplateProcessing(
        "[CLS]:0 $A:0 [SEP]:0",
        "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        [("[CLS]", made.token_to_id("[CLS]")), ("[SEP]", made.token_to_id("[SEP]"))],
    )
    made.decoder = decoders.WordPiece()
    return made


def byte_level() -> Tokenizer:
    """As GPT-2's: bytes as letters, blanks before words, no special token of its own."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=380,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    made.decoder = decoders.ByteLevel()
    return made


def metaspace(specials: Sequence[str] = (), strip: bool = True, bos: bool = True) -> Tokenizer:
    """As Llama's: a low line begins a word, unknown letters are bytes, <s> stands in front.

    Decoding strips the text's first blank, as Llama 2's and Mistral's do; Gemma's does not.
    """
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if strip else "never")
    first = ["<unk>", "<s>", "</s>", *specials]
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=560, special_tokens=[*first, *letters])
    )
    body = json.loads(made.to_str())
    # The bytes are ordinary tokens of real files; the trainer can only add them as special ones.
    body["added_tokens"] = [one for one in body["added_tokens"] if one["content"] in first]
    made = Tokenizer.from_str(json.dumps(body))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    if bos:
        made.post_processor = processors.TemplateProcessing(
            "<s> $A", "<s> $A <s> $B", [("<s>", made.token_to_id("<s>"))]
        )
    return made


def unigram() -> Tokenizer:
    """As T5's: likeliest pieces of text whose words begin with a low line, </s> at the end."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(
        TEXTS,
        trainers.UnigramTrainer(
            vocab_size=150, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>"
        ),
    )
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        "$A </s>", "$A </s> $B </s>", [("</s>", made.token_to_id("</s>"))]
    )
    return made


def word_level() -> Tokenizer:
    """Whole words and no decoder: tokens are joined by blanks."""
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(
        TEXTS, trainers.WordLevelTrainer(special_tokens=["<unk>", "<s>", "</s>"])
    )
    return made


def suffix() -> Tokenizer:
    """As the first GPT's: a mark ends each word."""
    made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"], end_of_word_suffix="</w>"),
    )
    made.decoder = decoders.BPEDecoder()
    return made


_FAMILIES = {
    "wordpiece": (wordpiece, {**BERT_SPECIAL, "model_input_names": BERT_INPUTS}),
    "byte_level": (byte_level, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
    "metaspace": (metaspace, SPECIAL),
    "gemma": (lambda: metaspace(strip=False), SPECIAL),
    "unigram": (unigram, {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}),
    "word_level": (word_level, SPECIAL),
    "suffix": (suffix, {"unk_token": "<unk>"}),
}
FAMILIES = tuple(_FAMILIES)


# Decoders that no family has, over the vocabulary of one.
_DECODERS = {
    "ctc": ("wordpiece", decoders.CTC(pad_token="[PAD]", word_delimiter_token="the")),
    "tidied text": (
        "metaspace",
        decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.WordPiece()]),
    ),
    "replaced text": (
        "metaspace",
        decoders.Sequence([decoders.Fuse(), decoders.Replace("▁t", "T"), decoders.ByteFallback()]),
    ),
    "bytes, blanks": (
        "metaspace",
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]),
    ),
    "stripped": (
        "byte_level",
        decoders.Sequence([decoders.ByteLevel(), decoders.Strip("t", 2, 0)]),
    ),
    "suffix inside": ("wordpiece", decoders.BPEDecoder("h")),
}
KINDS = (*FAMILIES, *_DECODERS)


def make(kind: str) -> PreTrainedTokenizerFast:
    """The kind's tokenizer as transformers has it; `save_pretrained` puts it beside a model."""
    family, decoder = _DECODERS.get(kind, (kind, None))
    make_inner, special = _FAMILIES[family]
    inner = make_inner()
    if decoder is not None:
        inner.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)
