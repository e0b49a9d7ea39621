"""Text: sequences of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gitbench.core.errors import ModelError
from gitbench.core.modality import Modality

if TYPE_CHECKING:
    import tokenizers
    import torch
    from torch import nn

PAD = 0
"""The token that fills what is left of a short sequence. It is no part of the truth."""

_ATTACKS = ("embeddings", "dager", "dlg", "tag")
_MODELS = ("transformer", "encoder")
_DEFENSES = ("none", "dp_sgd(noise_multiplier=1.0)", "gaussian_noise(std=0.1)", "pruning(rate=0.5)", "frozen_embeddings")
_KNOWN = ("*/gaussian_noise(std=0.1)/*", "*/pruning(rate=0.5)/*", "*/frozen_embeddings/*")
_MATRIX = {
    "dataset": ("text",),
    "model": _MODELS,
    "attack": _ATTACKS,
    "defense": _DEFENSES,
    "known_leaks": _KNOWN,
    "batch_size": (1,),
}


class TextData(Modality):
    """Sequences ``(L,)`` of tokens, which enter a model as vectors of its token embedding and leave a search as the nearest tokens.

    The blind guess has the tokens that most public sequences have, with the multiplicities that pay most, each where it is most frequent.

    Args:
        tokenizer: whose tokens they are; token 0 is padding.
        about: what is to stand beside every figure: of which text, cut by which tokenizer.
    """

    name = "text"
    noun, axes, dtype = "text", "L", "int64"
    gate = {"token_gain": 0.1}
    profiles = {
        "quick": _MATRIX,
        "standard": {**_MATRIX, "batch_size": (1, 2)},
        "paper": {**_MATRIX, "batch_size": (1, 2, 4)},
    }

    def __init__(self, *, tokenizer: tokenizers.Tokenizer, about: str) -> None:
        self.tokenizer = tokenizer
        self.about = about

    def __repr__(self) -> str:
        return self.name

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.tokenizer.get_vocab_size()

    def pieces(self, tokens: torch.Tensor) -> list[str]:
        """A sequence as people read it, token by token."""
        return [self.tokenizer.decode([token], skip_special_tokens=False) for token in tokens.tolist()]

    def problem(self, inputs: torch.Tensor) -> str:
        if inputs.is_floating_point():
            return f"expected tokens, which are integers, got {inputs.dtype}"
        low, high = int(inputs.min()), int(inputs.max())
        return "" if low >= 0 and high < self.vocabulary else f"expected tokens 0..{self.vocabulary - 1}, got {low}..{high}"

    def noise(self, shape: tuple[int, ...], *, generator: torch.Generator) -> torch.Tensor:
        import torch

        return torch.randint(PAD + 1, self.vocabulary, shape, generator=generator)

    def table(self, network: nn.Module) -> tuple[str, nn.Embedding]:
        """Name and module of a network's token embedding.

        Raises:
            ModelError: it has none.
        """
        from gitbench.clients.token_embedding import token_table

        found = token_table(network, self.vocabulary)
        if found is None:
            raise ModelError(f"Expected {type(network).__name__} to have a torch.nn.Embedding of {self.vocabulary} tokens, found none.")
        return found

    def adapt(self, network: nn.Module) -> None:
        from torch import nn

        from gitbench.clients.inputs_embeds import adapt_inputs, takes_embeddings
        from gitbench.clients.token_embedding import TokenEmbedding

        _, table = self.table(network)
        if takes_embeddings(network):
            adapt_inputs(network, table, end=PAD)
        elif type(table) is nn.Embedding:
            table.__class__ = TokenEmbedding

    def enter(self, network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.table(network)[1](inputs).detach()
        return found

    def inner_shape(self, network: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape, self.table(network)[1].embedding_dim)

    def start(self, network: nn.Module, shape: tuple[int, ...], *, init: str, generator: torch.Generator) -> torch.Tensor:
        """Vectors as long as those of the table."""
        import torch

        return torch.randn(shape, generator=generator) * float(self.table(network)[1].weight.detach().std())

    def leave(self, network: nn.Module, points: torch.Tensor) -> torch.Tensor:
        """By the cosine, as LAMP does."""
        from torch.nn import functional

        vectors = functional.normalize(self.table(network)[1].weight.detach(), dim=1)
        found: torch.Tensor = (functional.normalize(points.detach(), dim=-1) @ vectors.T).argmax(-1)
        return found

    def bypassed(self, network: nn.Module) -> frozenset[str]:
        return frozenset({f"{self.table(network)[0]}.weight"})

    def neighbours(self, inputs: torch.Tensor, *, count: int, generator: torch.Generator) -> torch.Tensor | None:
        """Half of them with two tokens exchanged, half with one replaced."""
        import torch

        flat = inputs.flatten()
        found = flat.repeat(count, 1)
        for row in range(count):
            first, second = torch.randint(len(flat), (2,), generator=generator).tolist()
            if row % 2 and flat[first] != flat[second]:
                found[row, [first, second]] = flat[[second, first]]
            else:
                step = int(torch.randint(1, self.vocabulary, (1,), generator=generator))
                found[row, first] = (flat[first] + step) % self.vocabulary
        return found.reshape(count, *inputs.shape)

    def blind(self, public: torch.Tensor) -> torch.Tensor:
        import torch
        from scipy.optimize import linear_sum_assignment

        length, places = public.shape[1], torch.arange(public.shape[1])
        counts = torch.zeros(len(public), self.vocabulary, dtype=torch.long, device=public.device)
        counts.scatter_add_(1, public, torch.ones_like(public))
        counts[:, PAD] = 0
        # The share of sequences that have a token at least once, twice, ...: the largest of these are what a bag can hope for.
        shares = torch.stack([(counts > times).double().mean(0) for times in range(length)])
        bag = shares.flatten().topk(length).indices % self.vocabulary
        often = torch.stack([(public == token).double().mean(0) for token in bag]).cpu()
        rows, columns = (torch.from_numpy(one) for one in linear_sum_assignment(-often.numpy()))
        found = torch.empty(length, dtype=torch.long)
        found[places[columns]] = bag.cpu()[rows]
        return found.to(public.device)

    def distances(self, found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """The share of tokens that differ in place, and where that is the same, of those that are missing anywhere."""
        import torch

        mine, theirs = truth[:, :, None], found[:, None]
        apart = (mine != theirs).double().mean(-1)
        missing = (mine[..., :, None] != theirs[..., None, :]).all(-1).double().mean(-1)
        return torch.as_tensor(missing + apart)

    def picture(self, truth: torch.Tensor, found: torch.Tensor) -> bytes:
        from gitbench.store.text_pictures import text_picture

        pairs = [(self.pieces(one), self.pieces(other)) for one, other in zip(truth[:, 0].cpu(), found[:, 0].cpu(), strict=True)]
        return text_picture(pairs)

    def told(self) -> Mapping[str, str]:
        return {"data.text": self.about}

    def flags(self, network: nn.Module) -> frozenset[str]:
        return frozenset() if self.table(network)[1].weight.requires_grad else frozenset({"frozen-embedding"})
