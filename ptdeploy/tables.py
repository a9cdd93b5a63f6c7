"""Cells in columns, as lines of text on a terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def columns(
    rows: Sequence[Sequence[object]],
    widths: Sequence[int] | None = None,
    *,
    right: Collection[int] = (),
    gap: str = "  ",
) -> list[str]:
    """A line for each row, its cells in columns with `gap` between them.

    A column is as wide as `widths` says, else as its widest cell; a cell that is wider pushes what
    follows. The columns in `right` are aligned to the right. No line ends in blanks.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    if widths is None:
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        gap.join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
