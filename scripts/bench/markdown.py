"""A table in Markdown."""

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """One line a row; everything but the first column stands to the right.

    >>> print(markdown_table(["type", "MB"], [["Flat", 59]]))
    | type | MB |
    |---|---:|
    | Flat | 59 |
    """
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = [" | ".join(map(str, row)) for row in (header, *rows)]
    lines.insert(1, "|".join(rule))
    return "\n".join(f"|{line}|" if number == 1 else f"| {line} |" for number, line in enumerate(lines))
