"""The claim: the JSON file beside a submission that says who made the reconstructions, and of which case."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from gitbench.core.errors import StoreError, nearest
from gitbench.core.spec import KINDS, Kind, Part, Spec, parse_spec
from gitbench.core.text import LIMIT, printable, shown
from gitbench.identity.case import PLAIN_CLIENT, Case, make_case
from gitbench.identity.loading import check_spec
from gitbench.identity.threat import THREATS
from gitbench.judge.worst_case import SUBMISSION
from gitbench.store.folder import read_file

SUFFIXES = (".safetensors", ".npz")
_LARGEST = 2**16  # bytes


def _visible(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError("expected visible characters")
    return text


def _beside(name: str) -> str:
    if Path(name).name != name or "\\" in name or Path(name).suffix not in SUFFIXES:
        raise ValueError(f"expected the name of a file beside this one, ending in {' or '.join(SUFFIXES)}")
    return _visible(name)


_Name = Annotated[str, Field(max_length=80), AfterValidator(_visible)]


class Claim(BaseModel):
    """What a claim says: who made the reconstructions with which attack, and of which case.

    Args:
        name: of the attack, in free words.
        author: the same of who made it.
        inputs: the file with the reconstructions, beside this one.
        profile: the leaderboard that it is to stand in; it has no other meaning here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    kind: Literal["gitbench submission"]
    schema_version: Literal[1] = Field(alias="schema")
    name: _Name
    author: _Name
    inputs: Annotated[str, Field(max_length=255), AfterValidator(_beside)]
    dataset: str
    model: str
    defense: str
    client: str = PLAIN_CLIENT
    threat: str = "server"
    profile: Literal["quick", "standard", "paper"] = "quick"
    victims: Annotated[PositiveInt, Field(le=1_000_000)]
    batch_size: Annotated[PositiveInt, Field(le=1_000_000)] = 1
    rounds: Annotated[PositiveInt, Field(le=10_000)] = 1
    seed: Annotated[int, Field(ge=0, lt=10_000)] = 0

    def case(self, *, digest: str) -> Case:
        """The case under which the reconstructions are scored.

        Args:
            digest: of the reconstructions, in the place of the attack's code.

        Raises:
            GitbenchError: it names what does not exist here.
        """
        attack = Spec("attack", (Part(SUBMISSION, (("author", self.author), ("name", self.name))),))
        specs = {kind: self._spec(kind) for kind in KINDS if kind != "attack"}
        if self.threat not in THREATS:
            raise StoreError(f"unknown threat model {shown(self.threat)}.{nearest(self.threat, THREATS)}")
        return make_case(
            dataset=specs["dataset"],
            model=specs["model"],
            defense=specs["defense"],
            attack=attack,
            client=specs["client"],
            attack_code=digest,
            threat=self.threat,
            profile=self.profile,
            victims=self.victims,
            batch_size=self.batch_size,
            rounds=self.rounds,
            seed=self.seed,
        )

    def _spec(self, kind: Kind) -> Spec:
        spec = parse_spec(kind, getattr(self, kind))
        if kind == "dataset":
            _check_harmless(spec)
        check_spec(spec)
        return spec


def read_claim(path: Path) -> Claim:
    """Read a claim.

    Raises:
        StoreError: nothing there, or no claim; the message names the file and what is wrong.
    """
    try:
        return Claim.model_validate_json(read_file(path, most=_LARGEST))
    except FileNotFoundError as error:
        raise StoreError(f"Cannot read the submission {path}: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = printable(".".join(str(part) for part in first["loc"]), keep="")[:LIMIT]
        raise StoreError(f"{path} is no submission: {where + ': ' if where else ''}{first['msg']}. See docs/entries.md.") from None


def _check_harmless(spec: Spec) -> None:
    """A claim comes from strangers: its dataset runs no code of theirs, and nothing is downloaded because it says so."""
    for part in spec.parts:
        if ":" in part.target:
            raise StoreError(f"expected the name of an installed dataset, got {shown(part.target)}: code that a claim names is not run")
        if dict(part.arguments).get("download"):
            raise StoreError(f"expected a dataset that is here already, got {shown(str(part))}: nothing is downloaded for a claim")
