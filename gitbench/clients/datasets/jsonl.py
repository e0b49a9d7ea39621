"""A user's own labelled texts, one JSON object a line."""

from __future__ import annotations

import hashlib
import json

from gitbench.clients.corpus import Cut, Document, data_of
from gitbench.clients.data import Data, Dataset, need_path
from gitbench.core.errors import DataError
from gitbench.core.text import shown
from gitbench.store.folder import read_file

LARGEST = 2**28  # bytes
MOST_CLASSES = 1000


class JsonLines(Dataset):
    """Texts with labels: ``{"text": "...", "label": ...}`` on each line. Each line is a document, and public or private as a whole.

    Args:
        path: the file.
        text: the key of the text.
        label: the key of the label, a string or an integer.
        length: of a sequence, in tokens; what is shorter is padded.
        vocabulary: tokens of the byte-level BPE that is trained on the public part.
        tokenizer: a file of the library tokenizers, in place of that.
        private: share of the documents that are private.
        seed: chooses them.
    """

    name = "jsonl"
    modality = "text"

    def __init__(
        self,
        *,
        path: str,
        text: str = "text",
        label: str = "label",
        length: int = 16,
        vocabulary: int = 1024,
        tokenizer: str | None = None,
        private: float = 0.25,
        seed: int = 0,
    ) -> None:
        self.path = path
        self.text = text
        self.label = label
        self.cut = Cut(length=length, vocabulary=vocabulary, tokenizer=tokenizer, private=private, seed=seed)

    def load(self) -> Data:
        content = read_file(need_path(self.path, "a file of JSON lines"), most=LARGEST)
        found = [self._entry(number, line) for number, line in enumerate(content.splitlines(), 1) if line.strip()]
        labels = sorted({label for _, label in found}, key=lambda one: (isinstance(one, str), one))
        if len(found) < 4 or not 2 <= len(labels) <= MOST_CLASSES:
            raise DataError(
                f"Expected at least four lines and 2..{MOST_CLASSES} labels in {self.path}, found {len(found)} and {len(labels)}."
            )
        documents = [Document(text, labels.index(label)) for text, label in found]
        about = f"{len(found)} lines of JSON, sha256 {hashlib.sha256(content).hexdigest()[:8]}"
        return data_of(documents, self.cut, classes=len(labels), name=repr(self), about=about, prose=False, fill=True)

    def _entry(self, number: int, line: bytes) -> tuple[str, str | int]:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.path}, line {number}: expected a JSON object, got {shown(line[:80])} ({error}).") from error
        text, label = (entry.get(key) if isinstance(entry, dict) else None for key in (self.text, self.label))
        if not isinstance(text, str) or not isinstance(label, str | int):
            raise DataError(
                f"{self.path}, line {number}: expected a string under {self.text!r} and a string or integer under {self.label!r}, "
                f"got {shown(text)} and {shown(label)}. Name other keys with text= and label=."
            )
        return text, label
