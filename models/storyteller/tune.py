"""P-Tune the storyteller's base model so that it writes one kind of text: mock definitions.

    python models/storyteller/tune.py

Prints held-back perplexity on that kind without and with the prompt, and two continuations.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from peft import PeftModel, PromptEncoderConfig, TaskType, get_peft_model
from text import ADAPTER, BASE, BASE_ID, KIND, one_kind
from transformers import AutoModelForCausalLM, AutoTokenizer

NUM_VIRTUAL_TOKENS = 16
BATCH_SIZE = 16
# The longest definitions; with the prompt they stay well inside the model's 512 positions.
MAX_TOKENS = 256


def pad_right(rows: list[list[int]], end: int) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and labels, each (batch, longest), int64; padding has no label.

    Padding is END too, so labels are made here: the END that closes a text must be learnt.
    Right padding gives each row the positions it would have alone.
    """
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), end)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


@torch.no_grad()
def perplexity(model: torch.nn.Module, rows: list[list[int]], end: int) -> float:
    """Per token over all rows, each alone; the leading END is given, the closing one scored."""
    model.eval()
    total = count = 0.0
    for row in rows:
        batch = pad_right([row], end)
        logits = model(input_ids=batch["input_ids"]).logits[:, -len(row) : -1]
        losses = torch.nn.functional.cross_entropy(
            logits[0], batch["input_ids"][0, 1:], reduction="sum"
        )
        total += losses.item()
        count += len(row) - 1
    return math.exp(total / count)


def train(model: PeftModel, rows: list[list[int]], end: int, args) -> None:
    prompt = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(prompt, lr=args.learning_rate)
    steps = args.epochs * -(-len(rows) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (steps - step) / steps)
    generator = random.Random(args.seed)
    for epoch in range(args.epochs):
        model.train()
        total = 0.0
        shuffled = generator.sample(rows, len(rows))
        for start in range(0, len(rows), BATCH_SIZE):
            loss = model(**pad_right(shuffled[start : start + BATCH_SIZE], end)).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(prompt, 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: training loss {total * BATCH_SIZE / len(rows):.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()

    torch.set_num_threads(2)
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    end = tokenizer.eos_token_id
    base = AutoModelForCausalLM.from_pretrained(BASE)
    train_rows, judged_rows = (
        [[*ids, end][:MAX_TOKENS] for ids in tokenizer(texts)["input_ids"]] for texts in one_kind()
    )
    print(f"{KIND}: {len(train_rows)} texts to train on, {len(judged_rows)} held back")
    without = perplexity(base, judged_rows, end)

    model = get_peft_model(
        base,
        PromptEncoderConfig(
            task_type=TaskType.CAUSAL_LM,
            num_virtual_tokens=NUM_VIRTUAL_TOKENS,
            encoder_reparameterization_type="MLP",
            encoder_hidden_size=256,
        ),
    )
    started = time.monotonic()
    train(model, train_rows, end, args)
    print(f"tuned in {time.monotonic() - started:.0f} s")
    print(f"held-back perplexity without the prompt: {without:.2f}")
    print(f"held-back perplexity with the prompt:    {perplexity(model, judged_rows, end):.2f}")

    # A path of this machine would mean nothing elsewhere.
    model.peft_config["default"].base_model_name_or_path = BASE_ID
    model.save_pretrained(ADAPTER)
    (ADAPTER / "README.md").unlink(missing_ok=True)  # a template; MODEL_CARD.md says it

    start = tokenizer("", return_tensors="pt")
    for name, writer in (("without the prompt", base), ("with the prompt", model)):
        for style, options in (
            ("greedy", {"do_sample": False}),
            ("sampled", {"do_sample": True, "temperature": 0.8, "top_k": 40}),
        ):
            torch.manual_seed(args.seed)
            written = _generate(writer, start, options)
            print(f"--- {name}, {style}")
            print(tokenizer.decode(written[0], skip_special_tokens=True))


@torch.no_grad()
def _generate(model: torch.nn.Module, start, options: dict) -> torch.Tensor:
    inputs = {key: start[key] for key in ("input_ids", "attention_mask")}
    return model.generate(**inputs, max_new_tokens=60, **options)


if __name__ == "__main__":
    main()
