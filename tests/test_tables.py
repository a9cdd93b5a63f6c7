"""One writer of text tables: what it promises to all that print one."""

from __future__ import annotations

from ptdeploy.tables import columns


def test_columns_are_as_wide_as_their_widest_cell():
    rows = [("ms", "share", "module"), (1.25, "10.0%", "a.b"), (12.5, "9.0%", "")]
    assert columns(rows, right=(0, 1)) == [
        "  ms  share  module",
        "1.25  10.0%  a.b",
        "12.5   9.0%",
    ]


def test_widths_can_be_given_and_a_wider_cell_pushes_what_follows():
    assert columns([("cores", 2), ("far too long", 3)], (10, 0), gap=" ") == [
        "cores      2",
        "far too long 3",
    ]


def test_no_rows_are_no_lines():
    assert columns([]) == []
