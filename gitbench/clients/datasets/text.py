"""English that every Python brings along: the topics of its help, nothing to download."""

from __future__ import annotations

import hashlib

from gitbench.clients.corpus import Cut, Document, data_of
from gitbench.clients.data import Data, Dataset

PINNED = "6061bdb5e47e53fb60fbb31038afe373b0674dc91e89004a8b91fcdcc4971890"
"""SHA-256 of the topics that the published figures are of: those of CPython 3.11.7."""

CLASSES = ("statements", "expressions", "names and calls", "objects")
_STATEMENTS = (
    *("assert", "assignment", "augassign", "break", "class", "compound", "continue", "del", "else", "for", "function", "global", "if"),
    *("import", "nonlocal", "pass", "raise", "return", "try", "while", "with", "yield", "async", "exprlists"),
)
_EXPRESSIONS = (
    *("atom-identifiers", "atom-literals", "await", "binary", "bitwise", "booleans", "comparisons", "conversions", "in", "lambda"),
    *("lists", "dict", "numbers", "integers", "floating", "imaginary", "operator-summary", "power", "shifting", "slicings", "strings"),
    *("string-methods", "formatstrings", "subscriptions", "truth", "unary"),
)
_NAMES = (
    *("attribute-access", "attribute-references", "calls", "callable-types", "context-managers", "customization", "debugger"),
    *("dynamic-features", "exceptions", "execmodel", "id-classes", "identifiers", "naming", "specialattrs", "specialnames"),
)


class Text(Dataset):
    """Sentences of ``pydoc_data.topics``, which comes with Python; the class is what kind of topic a sentence is from.

    Public and private sentences are of different topics, and none is in both. Each gives its first ``length`` tokens, and
    shorter ones are left out. Another version of Python has another text: its digest is part of every case, and stands beside every figure.

    Args:
        length: of a sequence, in tokens.
        vocabulary: tokens of the byte-level BPE that is trained on the public part.
        tokenizer: a file of the library tokenizers, in place of that.
        private: share of the topics that are private.
        seed: chooses them.
    """

    name = "text"
    modality = "text"

    def __init__(
        self, *, length: int = 16, vocabulary: int = 1024, tokenizer: str | None = None, private: float = 0.25, seed: int = 0
    ) -> None:
        self.cut = Cut(length=length, vocabulary=vocabulary, tokenizer=tokenizer, private=private, seed=seed)

    def load(self) -> Data:
        from pydoc_data.topics import topics  # its content is part of a case: gitbench.identity.sources.CONTENT

        digest = hashlib.sha256(repr(sorted(topics.items())).encode()).hexdigest()
        documents = [Document(topics[name], _label(name)) for name in sorted(topics)]
        same = "" if digest == PINNED else ": another Python's text, which is another dataset than the published figures are of"
        about = f"pydoc_data.topics, sha256 {digest[:8]}{same}"
        return data_of(documents, self.cut, classes=len(CLASSES), name=repr(self), about=about, prose=True, fill=False)


def _label(topic: str) -> int:
    groups = (_STATEMENTS, _EXPRESSIONS, _NAMES)
    return next((number for number, group in enumerate(groups) if topic in group), len(groups))
