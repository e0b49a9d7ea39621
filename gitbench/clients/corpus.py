"""From documents to token sequences: sentences, a tokenizer that is trained on the public part alone, and the two parts of the data."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gitbench.clients.data import Data, Split, need_path
from gitbench.clients.modalities.text import PAD, TextData
from gitbench.core.errors import DataError
from gitbench.core.random import make_generator

if TYPE_CHECKING:
    import tokenizers

LENGTHS = (4, 256)
_PAD_TOKEN = "[PAD]"  # noqa: S105 - no password
_SENTENCE = re.compile(r"(?<=[.!?;:])\s+(?=[A-Z\"(])")
_PROSE = 0.85  # of a sentence's characters that are letters, spaces or commas


@dataclass(frozen=True)
class Document:
    """A text and its class. Its sentences are all public or all private."""

    text: str
    label: int


@dataclass(frozen=True)
class Cut:
    """How text becomes sequences.

    Args:
        length: of a sequence, in tokens.
        vocabulary: of the tokenizer that is trained where none is given.
        tokenizer: a file of the library ``tokenizers``; None trains one on the public part.
        private: share of the documents that are private.
        seed: chooses them.
    """

    length: int = 16
    vocabulary: int = 1024
    tokenizer: str | None = None
    private: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if not all(type(one) is int for one in (self.length, self.vocabulary, self.seed)) or self.seed < 0:
            raise ValueError(f"expected whole numbers and seed >= 0, got {self.length!r}, {self.vocabulary!r}, {self.seed!r}")
        if not LENGTHS[0] <= self.length <= LENGTHS[1]:
            raise ValueError(f"expected length in {LENGTHS[0]}..{LENGTHS[1]}, got {self.length}")
        if not 300 <= self.vocabulary <= 65536:
            raise ValueError(f"expected vocabulary in 300..65536 (256 of the tokens are bytes), got {self.vocabulary}")
        if not isinstance(self.private, int | float) or not 0 < self.private < 1:
            raise ValueError(f"expected private in (0, 1), got {self.private!r}")


def sentences(text: str, *, prose: bool) -> list[str]:
    """The sentences of a text, paragraph by paragraph, their white space made plain.

    Args:
        text: paragraphs, with blank lines in between.
        prose: leave out what is mostly signs, or does not begin as a sentence does.
    """
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in _SENTENCE.split(" ".join(paragraph.split())):
            plain = sum(char.isalpha() or char in " ,.'" for char in sentence)
            if sentence and (not prose or (plain > _PROSE * len(sentence) and sentence[0].isupper())):
                found.append(sentence)
    return found


def data_of(documents: Sequence[Document], cut: Cut, *, classes: int, name: str, about: str, prose: bool, fill: bool) -> Data:
    """Public and private sequences of documents: disjoint by document, and no sequence is in both.

    Args:
        documents: at least two.
        cut: how they become sequences.
        classes: of their labels.
        name: of the data.
        about: where the text is from.
        prose: as for :func:`sentences`.
        fill: pad what is shorter than a sequence; False leaves it out.

    Raises:
        DataError: a library is missing, or nothing is left of a part.
    """
    _require_libraries()
    order = torch.randperm(len(documents), generator=make_generator(cut.seed, "documents")).tolist()
    held = max(1, round(cut.private * len(documents)))
    parts = [[documents[index] for index in sorted(some)] for some in (order[held:], order[:held])]
    texts = [[(one, document.label) for document in part for one in sentences(document.text, prose=prose)] for part in parts]
    tokenizer = _given(cut.tokenizer) if cut.tokenizer else _trained(tuple(text for text, _ in texts[0]), cut.vocabulary)
    seen: set[tuple[int, ...]] = set()
    splits = [_split(part, tokenizer, cut.length, fill=fill, seen=seen) for part in texts]
    for which, split in zip(("public", "private"), splits, strict=True):
        if not len(split):
            raise DataError(f"Expected {which} sequences of {cut.length} tokens in {name}, found none. Lower length=, or give more text.")
    digest = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:8]
    whose = "given" if cut.tokenizer else "byte-level BPE of the public part"
    told = f"{about}; {tokenizer.get_vocab_size()} tokens ({whose}, sha256 {digest})"
    return Data(splits[0], splits[1], classes=classes, name=name, modality=TextData(tokenizer=tokenizer, about=told))


def _require_libraries() -> None:
    missing = [name for name in ("tokenizers", "rouge_score") if importlib.util.find_spec(name) is None]
    if missing:
        raise DataError(f"Text needs {' and '.join(missing)}, which are not installed: pip install 'gitbench[text]'")


def _split(
    texts: Sequence[tuple[str, int]], tokenizer: tokenizers.Tokenizer, length: int, *, fill: bool, seen: set[tuple[int, ...]]
) -> Split:
    """The sequences of some sentences, each once: the first tokens of each. ``seen`` has those that were taken before."""
    rows, labels = [], []
    encoded = tokenizer.encode_batch([text for text, _ in texts], add_special_tokens=False) if texts else []
    for one, (_, label) in zip(encoded, texts, strict=True):
        tokens = tuple(one.ids[:length])
        tokens += (PAD,) * (length - len(tokens)) if fill and tokens else ()
        if len(tokens) == length and tokens not in seen:
            seen.add(tokens)
            rows.append(tokens)
            labels.append(label)
    inputs = torch.tensor(rows, dtype=torch.long).reshape(-1, length)
    return Split(inputs, torch.tensor(labels, dtype=torch.long))


def _given(path: str) -> tokenizers.Tokenizer:
    import tokenizers

    found = need_path(path, "a tokenizer of the library tokenizers")
    try:
        return tokenizers.Tokenizer.from_file(str(found))
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"Expected {found} to be a tokenizer.json of the library tokenizers: {error}.") from error


@functools.lru_cache(maxsize=4)
def _trained(texts: tuple[str, ...], vocabulary: int) -> tokenizers.Tokenizer:
    """A byte-level BPE of these texts. Token 0 is padding."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_PAD_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
