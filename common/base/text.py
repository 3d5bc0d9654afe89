"""Text that may come from a file of somebody else, made safe to print."""


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
