"""What strangers wrote, made fit for a terminal and a message."""

from __future__ import annotations

import re

LIMIT = 200


def printable(text: str, *, keep: str = "\n\t") -> str:
    r"""Escape whatever is not seen as itself: control and bidirectional characters, terminal sequences, lone surrogates.

    Args:
        text: any text.
        keep: characters to leave as they are. ``\x1b`` becomes the four characters ``\x1b``.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else char.encode("unicode_escape").decode() for char in text)


def shown(value: object, *, limit: int = LIMIT) -> str:
    """``repr(value)`` for a message: on one line, and cut where it is long."""
    try:
        text = printable(repr(value), keep="")
    except (RecursionError, ValueError):  # nested too deep; an integer of more digits than Python writes
        text = f"some {type(value).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def code(text: str) -> str:
    """Code in a cell of a Markdown table: pipes would end the cell, backticks the code, newlines the row."""
    return "`" + _one_line(text).replace("`", "'").replace("|", "\\|") + "`"


def escaped(text: str) -> str:
    """Text in Markdown, on one line: no emphasis, link, heading, HTML or mention is left standing."""
    return re.sub(r"([\\`*_{}\[\]<>#|@])", r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return printable(re.sub(r"\s+", " ", text), keep="")
