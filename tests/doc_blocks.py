"""Code blocks of the pages that people read, and the commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
_FENCE = re.compile(r"(?:^<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\w+\.py)\b")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Args:
        page: relative to the repository.
        line: where its text begins.
        language: the word behind the fence.
        reason: why it cannot run: ``<!-- not run: REASON -->`` in the line above the fence.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str:
        """The file that a comment in the code names, ``# mine.py``; empty where none is named."""
        found = _FILE.search(self.text)
        return found[1] if found and self.language == "python" else ""

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command: lines are joined at a backslash, comments, a final ``...``, ``> FILE`` and a session's output are dropped."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        found = []
        for line in lines:
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                command = [word for word in words[:end] if word != "..."]
                found.append(command[: command.index(">")] if ">" in command else command)
                words = words[end + 1 :]
        return found

    @property
    def output(self) -> str:
        """Of a session: what is no command."""
        return "".join(f"{line}\n" for line in self.text.splitlines() if not line.startswith("$ "))


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str) -> list[Block]:
    text = read(page)
    return [
        Block(page, text.count("\n", 0, found.start("text")) + 1, found["language"], found["text"], found["reason"] or "")
        for found in _FENCE.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def blocks(*languages: str) -> list[Block]:
    """The blocks in these languages that run."""
    return [block for block in BLOCKS if block.language in languages and not block.reason]
