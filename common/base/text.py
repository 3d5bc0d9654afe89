"""Text for people: numbers, tables, and what may come from a file of somebody else, made safe to print."""

import shlex
from collections.abc import Sequence


def printable(text: str) -> str:
    """The text with everything that a terminal would obey instead of show, line breaks included, as escapes."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def printable_lines(text: str) -> str:
    """As `printable`, line by line: line breaks and tabs stay."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def first_line(error: BaseException) -> str:
    """What an error says first, or its kind where it says nothing."""
    return str(error).partition("\n")[0] or type(error).__name__


def size_text(size: float) -> str:
    """Bytes for people: `4.3 MB`."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size:.0f} B"


def count_text(count: int, noun: str) -> str:
    """`1 scan`, `2 scans`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def shortened(names: Sequence[str], most: int = 25, shown: int = 5) -> str:
    """Names with commas, of more than `most` the first ones: `00, 01, 02, 03, 04 and 700 more`."""
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:shown])} and {len(names) - shown:,} more"


def command_line(*words: object) -> str:
    """A command of the program, to be pasted into a shell: `polar-distill evaluate --data 'my scans'`."""
    return shlex.join(["polar-distill", *map(str, words)])


def aligned_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines of aligned columns, indented; the first column is text, the others end on the right."""
    (first, *widths) = (max(map(len, column)) for column in zip(*rows, strict=True))
    cells = ([row[0].ljust(first), *map(str.rjust, row[1:], widths)] for row in rows)
    return [("  " + "  ".join(row)).rstrip() for row in cells]


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines of Markdown, the first one the head; cells that hold its own signs are escaped."""
    head, *rest = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rest)]
