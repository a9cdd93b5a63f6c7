"""The table of precisions where others read it: in docs/parity.md and in the C++ sources.

`make schema` runs this as a program, in the repository.
"""

from __future__ import annotations

from pathlib import Path

from ptdeploy.bundle.precision import FINITE, PRECISIONS, Thresholds, quantized

DOCS = Path("docs/parity.md")
CPP = Path("ptdeploy/cpp/src/precision_table.hpp")
_BEGIN, _END = "<!-- precisions: made by make schema -->\n", "<!-- end of precisions -->\n"


def cpp_header() -> str:
    """The thresholds as a C++ header."""
    rows = [
        f'    {{"{name}", {_braced(one.thresholds)}}},\n'
        for name, one in PRECISIONS.items()
        if one.thresholds is not None
    ]
    return (
        "// The table of ptdeploy/bundle/precision.py, written by `make schema`: change it there.\n"
        "#pragma once\n\n"
        '#include "thresholds.hpp"\n\n'
        "namespace ptdeploy::detail {\n\n"
        "struct PrecisionThresholds {\n  const char* name;\n  Thresholds bounds;\n};\n\n"
        "inline constexpr PrecisionThresholds kPrecisions[] = {\n"
        f"{''.join(rows)}}};\n\n"
        "// Quantized weights are judged by what they do to text; cases only have to be finite.\n"
        f"inline constexpr Thresholds kFinite{_braced(FINITE)};\n\n"
        "}  // namespace ptdeploy::detail\n"
    )


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
        "| precision | weight bits | agreement | perplexity ratio | logits error | inner tensors |",
        "|---|---|---|---|---|---|",
    ]
    for name, weights in quantized().items():
        bounds = (weights.min_agreement, weights.max_perplexity_ratio, weights.max_logits_error)
        shown = " | ".join(f"{bound:.2f}" for bound in bounds)
        tolerance = _short(PRECISIONS[name].inner_tolerance)
        lines.append(f"| {name} | {weights.bits} | {shown} | {tolerance} |")
    return "\n".join(lines) + "\n"


def _short(number: float) -> str:
    return f"{number:g}" if number >= 0.1 else f"{number:.0e}".replace("e-0", "e-")


def _braced(bounds: Thresholds) -> str:
    numbers = (bounds.max_abs, bounds.relative, bounds.cosine, bounds.kl)
    return f"{{{', '.join(map(repr, numbers))}}}"


def main() -> None:
    """Write both, in the working folder."""
    CPP.write_text(cpp_header())
    DOCS.write_text(with_tables(DOCS.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
