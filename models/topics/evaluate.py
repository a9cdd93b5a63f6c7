"""Accuracy on the held-back fortunes, by PEFT on PyTorch and, given one, by a bundle.

    python models/topics/evaluate.py [--bundle BUNDLE] [--limit N]

Exits 1 if the bundle predicts another category than PEFT for any text.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from data import ADAPTER, CATEGORIES, LABELS, find_base_model, load_split


def classify_with_peft(texts: list[str]) -> list[tuple[int, float]]:
    """The category index of each text and its probability, each text alone and unpadded."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(2)
    base_folder = find_base_model()
    base = AutoModelForSequenceClassification.from_pretrained(
        base_folder, num_labels=len(CATEGORIES)
    )
    model = PeftModel.from_pretrained(base, ADAPTER).eval()
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    results = []
    with torch.inference_mode():
        for text in texts:
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
            probability, index = logits.softmax(-1).max(-1)
            results.append((int(index), float(probability)))
    return results


def classify_with_bundle(bundle: str, texts: list[str]) -> list[tuple[int, float]]:
    """The same by `ptdeploy`: the category index of each text and its probability."""
    import ptdeploy

    engine = ptdeploy.load(bundle)
    names = LABELS.read_text().split()
    results = []
    for result in engine.classify(texts):
        if result.label != names[result.index]:
            raise SystemExit(
                f"{bundle}: index {result.index} is labelled {result.label!r}, "
                f"but {LABELS.name} says {names[result.index]!r}. Compile with that file."
            )
        results.append((result.index, result.probabilities[result.index]))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", help="a bundle compiled from models/topics/adapter")
    parser.add_argument("--limit", type=int, help="only the first N held-back texts")
    args = parser.parse_args()

    # The texts are ordered by category: every k-th one keeps them all in a short run.
    examples = load_split().held_back
    if args.limit is not None:
        if args.limit < 1:
            parser.error("--limit must be at least 1")
        examples = examples[:: max(1, len(examples) // args.limit)][: args.limit]
    texts = [example.text for example in examples]
    majority = Counter(example.label for example in examples).most_common(1)[0]
    print(f"{len(texts)} held-back texts; majority class ({CATEGORIES[majority[0]]}): ", end="")
    print(f"{majority[1] / len(texts):.4f}")

    def timed(name: str, classify) -> list[tuple[int, float]]:
        started = time.monotonic()
        results = classify()
        seconds = time.monotonic() - started
        hits = sum(index == e.label for (index, _), e in zip(results, examples, strict=True))
        print(f"{name}: accuracy {hits / len(texts):.4f} ({hits} of {len(texts)}), {seconds:.1f} s")
        return results

    reference = timed("PEFT on PyTorch", lambda: classify_with_peft(texts))
    if args.bundle is None:
        return
    compiled = timed("bundle", lambda: classify_with_bundle(args.bundle, texts))
    differing = [i for i in range(len(texts)) if reference[i][0] != compiled[i][0]]
    if differing:
        for i in differing[:5]:
            (ours, p), (theirs, q) = compiled[i], reference[i]
            print(
                f"  text {i}: bundle says {CATEGORIES[ours]} ({p:.4f}), "
                f"PEFT says {CATEGORIES[theirs]} ({q:.4f})"
            )
        sys.exit(f"{len(differing)} of {len(texts)} predictions differ between bundle and PEFT.")
    print("every predicted category is the same")


if __name__ == "__main__":
    main()
