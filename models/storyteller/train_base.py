"""Train the storyteller's base model: a byte-level BPE tokenizer and a small Qwen2.

    python models/storyteller/train_base.py        about 8 minutes on 2 cores

Small on purpose (1 M parameters): it is committed, and it has every feature of a real decoder
that a compiler must get right: grouped-query attention, rotary positions, tied embeddings.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from text import BASE, END, everything
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

VOCAB_SIZE = 2048
ROW_TOKENS = 256
BATCH_SIZE = 16
WARMUP_STEPS = 50


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE learned from the texts; END is bos, eos and padding at once."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    # Every text starts with END, so that the first word has something to be predicted from.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def build_model(end: int) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    return Qwen2ForCausalLM(config)


def pack(documents: list[list[int]], generator: random.Random) -> Iterator[torch.Tensor]:
    """Shuffle whole texts into rows of END text END text ... (batch, ROW_TOKENS), int64.

    Every row starts at a text's start, as a prompt will; what a row has no room for is lost to
    this epoch only, since the next one shuffles anew.
    """
    row: list[int] = []
    rows: list[list[int]] = []
    for document in generator.sample(documents, len(documents)):
        row += document
        if len(row) < ROW_TOKENS:
            continue
        rows.append(row[:ROW_TOKENS])
        row = []
        if len(rows) == BATCH_SIZE:
            yield torch.tensor(rows)
            rows = []


@torch.no_grad()
def mean_loss(model: Qwen2ForCausalLM, rows: list[torch.Tensor]) -> float:
    model.eval()
    return sum(model(input_ids=row, labels=row).loss.item() for row in rows) / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, help="stop early, for a trial; saves nothing")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()

    torch.set_num_threads(2)
    torch.manual_seed(args.seed)
    train, held_back = everything()
    tokenizer = build_tokenizer(train)
    end = tokenizer.eos_token_id
    documents, judged = tokenizer(train)["input_ids"], tokenizer(held_back)["input_ids"]
    tokens = sum(map(len, documents))
    print(f"{len(documents)} texts, {tokens} tokens; held back: {len(judged)} texts")

    model = build_model(end)
    print(f"{sum(p.numel() for p in model.parameters())} parameters")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=0.1
    )
    generator = random.Random(args.seed)
    epochs = [list(pack(documents, generator)) for _ in range(args.epochs)]
    steps = sum(map(len, epochs))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP_STEPS, (steps - step) / steps)
    )
    started = time.monotonic()
    done = 0
    for number, epoch in enumerate(epochs, 1):
        model.train()
        total = 0.0
        for rows in epoch:
            loss = model(input_ids=rows, labels=rows).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
            done += 1
            if args.minutes and time.monotonic() - started > 60 * args.minutes:
                print(f"stopped at step {done} of {steps}, loss {loss.item():.3f}")
                return
        print(
            f"epoch {number}: training loss {total / len(epoch):.3f}, "
            f"{time.monotonic() - started:.0f} s",
            flush=True,
        )
    held_rows = list(pack(judged, random.Random(args.seed)))
    print(f"held-back loss {mean_loss(model, held_rows):.3f} nats a token")

    model.generation_config = GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=end, max_new_tokens=128
    )
    model.save_pretrained(BASE)
    tokenizer.save_pretrained(BASE)


if __name__ == "__main__":
    main()
