"""The table of precisions where people read it: in docs/parity.md.

`make schema` runs this as a program, in the repository.
"""

from __future__ import annotations

from pathlib import Path

from ptdeploy.bundle.precision import PRECISIONS, quantized

DOCS = Path("docs/parity.md")
_BEGIN, _END = "<!-- precisions: made by make schema -->\n", "<!-- end of precisions -->\n"


def with_tables(page: str) -> str:
    """A page of docs with the tables of now between its marks.

    Raises ValueError if it has no marks.
    """
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{DOCS}: has no lines {_BEGIN.strip()} and {_END.strip()}")
    return f"{before}{begin}{_tables()}{end}{after}"


def _tables() -> str:
    lines = [
        "| precision | max abs | relative | cosine | KL | inner tensors |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in PRECISIONS.items():
        if (t := one.thresholds) is not None:
            numbers = (t.max_abs, t.relative, t.cosine, t.kl, one.inner_tolerance)
            lines.append(f"| {name} | {' | '.join(map(_short, numbers))} |")
    lines += [
        "",
        "| precision | weight bits | agreement | of classes | perplexity ratio | logits error | "
        "inner tensors |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, weights in quantized().items():
        shown = (
            f"{weights.min_agreement:.2f} | {weights.min_class_agreement:.3f} | "
            f"{weights.max_perplexity_ratio:.2f} | {weights.max_logits_error:.2f}"
        )
        tolerance = _short(PRECISIONS[name].inner_tolerance)
        lines.append(f"| {name} | {weights.bits} | {shown} | {tolerance} |")
    return "\n".join(lines) + "\n"


def _short(number: float) -> str:
    return f"{number:g}" if number >= 0.1 else f"{number:.0e}".replace("e-0", "e-")


def main() -> None:
    """Write them, in the working folder."""
    DOCS.write_text(with_tables(DOCS.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
