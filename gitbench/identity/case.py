"""One cell of the matrix as data: what is measured, under which assumptions, by which code."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from pydantic import BaseModel, ConfigDict, PositiveInt

from gitbench._version import __version__
from gitbench.core.spec import Part, Spec, canonical_json, parse_spec
from gitbench.identity.known_metrics import digest_of_metrics
from gitbench.identity.names import Target
from gitbench.identity.sources import Written, digest_of_module, part_digest, written
from gitbench.identity.threat import knowledge_of

UNDEFENDED = "none"
PLAIN_CLIENT = "fedsgd"


@dataclass(frozen=True)
class Setting:
    """What the cells of one table share, as labels. As a text a path: ``dataset/model``, then what is not the plainest.

    ``photos/lenet`` is the gradient of a single image, ``photos/lenet/fedavg(steps=5)/batch-4/rounds-16`` is not.
    """

    dataset: str
    model: str
    client: str = PLAIN_CLIENT
    batch_size: int = 1
    rounds: int = 1

    def __str__(self) -> str:
        client = () if self.client == PLAIN_CLIENT else (self.client,)
        batch = () if self.batch_size == 1 else (f"batch-{self.batch_size}",)
        rounds = () if self.rounds == 1 else (f"rounds-{self.rounds}",)
        return "/".join((self.dataset, self.model, *client, *batch, *rounds))


def several_rounds(rounds: int) -> dict[str, int]:
    """What a table says of its rounds: nothing where there is one, as in all tables of before there were several."""
    return {} if rounds == 1 else {"rounds": rounds}


@dataclass(frozen=True)
class CellLabels:
    """The labels of a cell. As a text they are a path: ``dataset/model/defense/attack``, with the setting in between."""

    dataset: str
    model: str
    defense: str
    attack: str
    client: str = PLAIN_CLIENT
    batch_size: int = 1
    rounds: int = 1

    @property
    def setting(self) -> Setting:
        """Of the table that the cell stands in."""
        return Setting(self.dataset, self.model, self.client, self.batch_size, self.rounds)

    def __str__(self) -> str:
        return f"{self.setting}/{self.defense}/{self.attack}"


class Case(BaseModel):
    """A measurement that can be repeated: equal cases give equal results.

    ``code`` is part of the identity: an edited defense is a new case and is measured again. ``rounds`` is how many updates of the
    same victims the attacker sees.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    model: str
    defense: str
    attack: str
    threat: str
    knowledge: tuple[str, ...]
    profile: str
    client: str = PLAIN_CLIENT
    victims: PositiveInt
    batch_size: PositiveInt
    rounds: PositiveInt = 1
    seed: int
    code: dict[str, str]

    @property
    def case_id(self) -> str:
        """Hash of the canonical JSON of this case (20 hex digits)."""
        # Cases of before there were clients, or rounds, keep their ids.
        plain = {name for name, value in (("client", PLAIN_CLIENT), ("rounds", 1)) if getattr(self, name) == value}
        return hashlib.sha256(canonical_json(self.model_dump(mode="json", exclude=plain)).encode()).hexdigest()[:20]

    @property
    def labels(self) -> CellLabels:
        """The labels of the cell this case belongs to."""
        return CellLabels(
            dataset=parse_spec("dataset", self.dataset).label,
            model=parse_spec("model", self.model).label,
            defense=parse_spec("defense", self.defense).label,
            attack=parse_spec("attack", self.attack).label,
            client=parse_spec("client", self.client).label,
            batch_size=self.batch_size,
            rounds=self.rounds,
        )

    @property
    def cell(self) -> str:
        """The cell this case belongs to, as a path."""
        return str(self.labels)

    @property
    def is_control(self) -> bool:
        return self.defense == UNDEFENDED

    def control(self) -> Case:
        """The undefended case of the same attack, model, data and seed."""
        code = {**self.code, "defense": _undefended_code()}
        return self.model_copy(update={"defense": UNDEFENDED, "code": code})

    def oblivious(self) -> tuple[Case, ...]:
        """This case with the attacker that does not know the defense, as ``adapt=False`` may be spelled; none for that one itself."""
        spec = parse_spec("attack", self.attack)
        if any(dict(part.arguments).get("adapt") is False for part in spec.parts):
            return ()
        found = []
        for first in (True, False):
            parts = []
            for part in spec.parts:
                others = tuple(item for item in part.arguments if item[0] != "adapt")
                parts.append(Part(part.target, (("adapt", False), *others) if first else (*others, ("adapt", False))))
            found.append(self.model_copy(update={"attack": str(Spec(spec.kind, tuple(parts)))}))
        return tuple(found)


def make_case(
    *,
    dataset: Spec,
    model: Spec,
    defense: Spec,
    attack: Spec,
    client: Spec | None = None,
    threat: str,
    profile: str,
    victims: int,
    batch_size: int,
    rounds: int = 1,
    seed: int,
    defense_code: str | None = None,
    attack_code: str | None = None,
) -> Case:
    """Build a case and stamp it with the version and the digests of the code behind it.

    Args:
        client: None for one that sends the gradient.
        defense_code: of a defense whose SPEC leads nowhere; ``attack_code`` likewise.
    """
    client = client or parse_spec("client", PLAIN_CLIENT)
    specs = {"dataset": dataset, "model": model, "defense": defense, "attack": attack, "client": client}
    given = {"defense": defense_code, "attack": attack_code}
    code = {kind: given.get(kind) or code_digest(spec) for kind, spec in specs.items()}
    return Case(
        **{kind: str(spec) for kind, spec in specs.items()},
        threat=threat,
        knowledge=tuple(sorted(knowledge_of(threat))),
        profile=profile,
        victims=victims,
        batch_size=batch_size,
        rounds=rounds,
        seed=seed,
        code={
            "gitbench": __version__,
            "core": core_digest(),
            "metrics": digest_of_metrics(),
            **code,
        },
    )


def code_digest(spec: Spec, *, read: Callable[[Target], Written] = written) -> str:
    """Digest of what stands behind every part of a SPEC: sources, and the files that its options name; ``read`` as in ``part_digest``."""
    return "+".join(part_digest(spec.kind, part, read=read) for part in spec.parts)


@cache
def _undefended_code() -> str:
    return code_digest(parse_spec("defense", UNDEFENDED))


@cache
def core_digest() -> str:
    """Digest of the sources of the measuring chain, but for the metrics, which are found by their names."""
    return digest_of_module("gitbench.measure.evaluator")
