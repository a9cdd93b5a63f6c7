"""P-Tune all-MiniLM-L6-v2 to tell the category of a fortune.

    python models/topics/train.py              train, print held-back accuracy, save
    python models/topics/train.py --validate   hold out a part of the training texts instead of
                                               using the held-back ones; saves nothing

The defaults were chosen with --validate, so the held-back texts chose nothing.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections import Counter
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from data import ADAPTER, BASE_ID, CATEGORIES, LABELS, Example, find_base_model, load_split
from peft import PeftModel, PromptEncoderConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BatchEncoding
from transformers import PreTrainedTokenizerBase as Tokenizer

NUM_VIRTUAL_TOKENS = 20
BATCH_SIZE = 32
WARMUP_STEPS = 20


def collate(tokenizer: Tokenizer, examples: list[Example]) -> BatchEncoding:
    """Tokenize into one right-padded batch: input_ids and masks (batch, longest), int64.

    Right padding matters: PEFT numbers positions over padding too, so only rows padded on the
    right get the positions they would have alone, which is how they are run later.
    """
    texts = [example.text for example in examples]
    return tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")


def batches(examples: list[Example], generator: random.Random) -> Iterator[list[Example]]:
    """Shuffled batches of texts of like length, so that little of a batch is padding."""
    shuffled = generator.sample(examples, len(examples))
    window = BATCH_SIZE * 8
    chunks = []
    for start in range(0, len(shuffled), window):
        alike = sorted(shuffled[start : start + window], key=lambda example: len(example.text))
        chunks += [alike[i : i + BATCH_SIZE] for i in range(0, len(alike), BATCH_SIZE)]
    generator.shuffle(chunks)
    yield from chunks


@torch.no_grad()
def predict(model: PeftModel, tokenizer: Tokenizer, examples: list[Example]) -> list[int]:
    """The most likely category of each text, in order, from right-padded batches."""
    model.eval()
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].text))
    predicted = [0] * len(examples)
    for start in range(0, len(order), BATCH_SIZE):
        indices = order[start : start + BATCH_SIZE]
        logits = model(**collate(tokenizer, [examples[i] for i in indices])).logits
        for i, label in zip(indices, logits.argmax(-1).tolist(), strict=True):
            predicted[i] = label
    return predicted


def accuracy(predicted: list[int], examples: list[Example]) -> float:
    return sum(p == e.label for p, e in zip(predicted, examples, strict=True)) / len(examples)


def build_model(encoder_hidden_size: int) -> PeftModel:
    base = AutoModelForSequenceClassification.from_pretrained(
        find_base_model(), num_labels=len(CATEGORIES)
    )
    config = PromptEncoderConfig(
        task_type=TaskType.SEQ_CLS,
        num_virtual_tokens=NUM_VIRTUAL_TOKENS,
        encoder_reparameterization_type="MLP",
        encoder_hidden_size=encoder_hidden_size,
    )
    return get_peft_model(base, config)


def train(model: PeftModel, tokenizer: Tokenizer, examples: list[Example], args) -> None:
    """Train the prompt encoder and the classifier; every other weight stays as it was."""
    head = [p for n, p in model.named_parameters() if p.requires_grad and "classifier" in n]
    prompt = [p for n, p in model.named_parameters() if p.requires_grad and "classifier" not in n]
    optimizer = torch.optim.AdamW(
        [
            {"params": prompt, "lr": args.learning_rate},
            {"params": head, "lr": args.head_learning_rate},
        ],
        weight_decay=0.01,
    )
    steps = args.epochs * -(-len(examples) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP_STEPS, (steps - step) / steps)
    )
    # Rare categories weigh more, by the root of their rarity: enough that none is given up on.
    counts = Counter(example.label for example in examples)
    weight = torch.tensor([(len(examples) / counts[i]) ** 0.5 for i in range(len(CATEGORIES))])
    loss_of = torch.nn.CrossEntropyLoss(weight=weight)
    generator = random.Random(args.seed)
    for epoch in range(args.epochs):
        model.train()
        total = 0.0
        for batch in batches(examples, generator):
            labels = torch.tensor([example.label for example in batch])
            loss = loss_of(model(**collate(tokenizer, batch)).logits, labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(prompt + head, 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        print(f"epoch {epoch + 1}: training loss {total / len(examples):.3f}", flush=True)


def save(model: PeftModel) -> None:
    """Write adapter/ and labels.txt: what a user of PEFT would be handed."""
    # A path of this machine would mean nothing elsewhere.
    model.peft_config["default"].base_model_name_or_path = BASE_ID
    model.save_pretrained(ADAPTER)
    (ADAPTER / "README.md").unlink(missing_ok=True)  # a template; MODEL_CARD.md says it
    LABELS.write_text("".join(f"{name}\n" for name in CATEGORIES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--head-learning-rate", type=float, default=5e-3)
    parser.add_argument("--encoder-hidden-size", type=int, default=384)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--validate", action="store_true")
    args = parser.parse_args()

    torch.set_num_threads(2)
    torch.manual_seed(args.seed)
    split = load_split()
    examples, judged = split.train, split.held_back
    if args.validate:
        judged = examples[::6]
        examples = [example for i, example in enumerate(examples) if i % 6]
    for name, part in (("train", examples), ("judged", judged)):
        counts = Counter(CATEGORIES[example.label] for example in part)
        print(f"{name}: {len(part)} texts, {dict(sorted(counts.items()))}")

    tokenizer = AutoTokenizer.from_pretrained(find_base_model())
    model = build_model(args.encoder_hidden_size)
    started = time.monotonic()
    train(model, tokenizer, examples, args)
    print(f"trained in {time.monotonic() - started:.0f} s")

    predicted = predict(model, tokenizer, judged)
    majority = Counter(example.label for example in judged).most_common(1)[0]
    print(f"majority class ({CATEGORIES[majority[0]]}): {majority[1] / len(judged):.3f}")
    print(f"tuned model: {accuracy(predicted, judged):.3f}")
    for label, name in enumerate(CATEGORIES):
        hits = [p == label for p, e in zip(predicted, judged, strict=True) if e.label == label]
        print(f"  {name}: {sum(hits)} of {len(hits)}")
    if not args.validate:
        save(model)


if __name__ == "__main__":
    main()
