"""A user's own text."""

from __future__ import annotations

import hashlib
import re

from gitbench.clients.corpus import Cut, Document, data_of
from gitbench.clients.data import Data, Dataset, need_path
from gitbench.core.errors import DataError
from gitbench.store.folder import read_file

LARGEST = 2**28  # bytes


class TextFile(Dataset):
    """Sentences of a file of plain text (UTF-8). Its documents are what blank lines separate; a document is public or private as a whole.

    There are two classes, for models that tell texts apart: documents shorter than the median, and the others.

    Args:
        path: the file.
        length: of a sequence, in tokens; what is shorter is padded.
        vocabulary: tokens of the byte-level BPE that is trained on the public part.
        tokenizer: a file of the library tokenizers, in place of that.
        private: share of the documents that are private.
        seed: chooses them.
    """

    name = "textfile"
    modality = "text"

    def __init__(
        self, *, path: str, length: int = 16, vocabulary: int = 1024, tokenizer: str | None = None, private: float = 0.25, seed: int = 0
    ) -> None:
        self.path = path
        self.cut = Cut(length=length, vocabulary=vocabulary, tokenizer=tokenizer, private=private, seed=seed)

    def load(self) -> Data:
        content = read_file(need_path(self.path, "a file of text"), most=LARGEST)
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"Expected UTF-8 in {self.path}: {error}.") from error
        texts = [one for one in re.split(r"\r?\n\s*\n", text) if one.strip()]
        if len(texts) < 4:
            raise DataError(f"Expected at least four documents in {self.path}, with blank lines in between, found {len(texts)}.")
        middle = sorted(map(len, texts))[len(texts) // 2]
        documents = [Document(one, int(len(one) >= middle)) for one in texts]
        about = f"a file of {len(texts)} documents, sha256 {hashlib.sha256(content).hexdigest()[:8]}"
        return data_of(documents, self.cut, classes=2, name=repr(self), about=about, prose=False, fill=True)
