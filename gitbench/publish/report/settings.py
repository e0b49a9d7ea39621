"""From a table of results to what its cells share: knowledge, versions, the command, and a row for each defense."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from statistics import fmean

from gitbench.core.errors import SpecError
from gitbench.core.spec import Part, parse_spec
from gitbench.identity.case import PLAIN_CLIENT, UNDEFENDED, Case
from gitbench.judge.cost import Percent, accuracy, trainings
from gitbench.judge.worst_case import Worst, is_submission
from gitbench.publish.cost_table import front, measured_drops, measured_here
from gitbench.publish.report.cells import NOT_MEASURED, bounds, metric_shown, shown_name
from gitbench.publish.report.data import Bounds, CellMeasured, DefenseCost, DefenseInSetting, SettingMeasured
from gitbench.publish.report.standing import NEXT, figure, next_step, row_standing
from gitbench.publish.table import Table
from gitbench.run.profiles import PROFILES
from gitbench.store.result import Environment, Result

BUILT_IN = "photos"
"""The data that everybody has who has gitbench: its pictures give nobody away."""

_SHARED_CODE = ("gitbench", "core", "metrics", "dataset", "model", "client")


def setting_of(table: Table, *, redact: bool | None) -> SettingMeasured:
    """A setting without its rows.

    Args:
        table: what was measured.
        redact: whether to leave out pictures; None leaves out all but the built-in data's.
    """
    results = [result for several in table.results.values() for result in several]
    case = results[0].case
    seeds = {result.case.seed for result in results}
    return SettingMeasured(
        name=_name(case, victims=table.conditions.get("victims", case.victims)),
        dataset=shown_name(case.dataset),
        model=shown_name(case.model),
        client=shown_name(case.client),
        batch_size=case.batch_size,
        rounds=case.rounds,
        threat=case.threat,
        knowledge=case.knowledge,
        profile=case.profile,
        victims=max(result.case.victims for result in results),
        seeds=tuple(sorted(seeds)),
        private_images=private_images(case.dataset),
        redacted=not is_built_in(case.dataset) if redact is None else redact,
        command=command_of(table, case, seeds=len(seeds), costs=any(result.training for result in results if not result.case.is_control)),
        metric=metric_shown(table.metric, table.gate[table.metric.name]),
        gate=dict(table.gate),
        blind=next((result.baselines.blind for result in results if result.baselines.blind), {}),
        machines=tuple(dict.fromkeys(_machine(result.environment) for result in results)),
        code={kind: case.code[kind] for kind in _SHARED_CODE if kind in case.code},
        attacks=tuple(shown_name(attack) for attack in sorted(table.attacks, key=lambda attack: (attack != table.auto, attack))),
    )


def rows_of(table: Table, setting: SettingMeasured, cells: Sequence[CellMeasured]) -> tuple[DefenseInSetting, ...]:
    """A row for each defense; the undefended one is the yardstick."""
    worsts = table.worsts
    by_defense: dict[str, list[CellMeasured]] = {}
    for cell in cells:
        by_defense.setdefault(cell.defense, []).append(cell)
    drops = measured_drops(table)
    best = front(table, worsts, drops)
    rows = []
    for defense, worst in worsts.items():
        own = by_defense[shown_name(defense)]
        cost = _cost(table, defense, drops[defense], on_front=defense in best) if defense in drops else None
        rows.append(_row(table, setting, defense, worst, own, cost))
    return tuple(rows)


def is_built_in(dataset: str) -> bool:
    """Whether a dataset's images are in a wheel that everybody has."""
    return (part := _dataset(dataset)) is not None and part.target == BUILT_IN


def private_images(dataset: str) -> int | None:
    """How many private images there are among which one may be identified; None where the SPEC does not say."""
    part = _dataset(dataset)
    if part is None or part.target != BUILT_IN:
        return None
    per_class = dict(part.arguments).get("private", 64)
    return 8 * per_class if isinstance(per_class, int) else None


def command_of(table: Table, case: Case, *, seeds: int, costs: bool) -> str:
    """The command that measures a table again, as a shell takes it."""
    profile = PROFILES.get(case.profile)
    words = ["pytest", "--gitbench"]

    def option(name: str, value: object, usual: object = None) -> None:
        if value != usual:
            words.extend((f"--gitbench-{name}", str(value)))

    option("profile", case.profile, "quick")
    option("dataset", case.dataset)
    option("model", case.model)
    option("client", case.client, PLAIN_CLIENT)
    # The SPEC as it was typed: a table of a run knows labels, which have no folders.
    defenses = {key[0]: several[0].case.defense for key, several in table.results.items() if several}
    attacks = {key[1]: several[0].case.attack for key, several in table.results.items() if several}
    for defense in table.defenses:
        option("defense", defenses.get(defense, defense))
    for attack in table.attacks:
        if not is_submission(attack):
            option("attack", attacks.get(attack, attack))
    option("batch-size", case.batch_size, 1)
    option("rounds", case.rounds, 1)
    option("threat", case.threat, "server")
    option("victims", table.conditions.get("victims", case.victims), profile and profile.victims)
    option("seeds", seeds, profile and profile.seeds)
    if profile is None or dict(table.gate) != dict(profile.threshold):
        for metric, value in table.gate.items():
            option("threshold", f"{metric}={value:g}")
    option("cost", "yes" if costs else None)
    return shlex.join(words)


def _row(
    table: Table, setting: SettingMeasured, defense: str, worst: Worst, cells: Sequence[CellMeasured], cost: DefenseCost | None
) -> DefenseInSetting:
    standing = row_standing([cell.standing for cell in cells])
    alike = [cell for cell in cells if cell.standing == standing] if standing in ("leaks", "undecided", "error", "timed out") else cells
    sign = table.metric.sign
    known = [(sign * cell.value.mean, cell.id) for cell in alike if cell.value.mean is not None]
    strongest = max(known)[1] if known else (alike[0].id if alike else None)
    idle = () if defense == UNDEFENDED else tuple(cell.attack for cell in cells if cell.standing == "no control")
    working = tuple(cell.attack for cell in cells if cell.standing in ("leaks", "holds", "undecided", "no success"))
    cosines = {one.case.seed: one.utility.cosine for one in measured_here(table, defense) if one.utility is not None}
    left = [one for one in cosines.values() if one is not None]
    if defense == UNDEFENDED:
        sentence, after = "The control: what the attacks get without a defense.", ""
    else:
        sentence = f"At most {figure(setting.metric, bounds(worst.bound))}, on each victim the most that any attack got."
        after = next_step(standing, [setting]) if standing != "holds" else NEXT["holds"]
    return DefenseInSetting(
        defense=shown_name(defense),
        standing=standing,
        sentence=sentence,
        next=after,
        worst=bounds(worst.bound),
        auto=bounds(worst.auto),
        strongest=strongest,
        working=working,
        without_control=idle,
        incomplete={
            shown_name(attack): "not measured" if table.errors.get((defense, attack)) == NOT_MEASURED else reason
            for attack, reason in worst.incomplete.items()
        },
        left_to_learn=fmean(left) if left else None,
        cost=cost,
    )


def _cost(table: Table, defense: str, drop: Percent, *, on_front: bool) -> DefenseCost | None:
    results: list[Result] = measured_here(table, defense)
    found, right = trainings(results), accuracy(results)
    if not found or right is None:
        return None
    return DefenseCost(
        accuracy=_percent(right),
        lost=_percent(drop),
        front=on_front,
        bytes_sent=fmean(one.bytes_sent for one in found),
        seconds=fmean(one.seconds for one in found),
        epsilon=found[0].epsilon,
        delta=found[0].delta,
    )


def _percent(found: Percent) -> Bounds:
    return Bounds(mean=found.mean, low=found.low, high=found.high)


def _dataset(text: str) -> Part | None:
    try:
        return parse_spec("dataset", text).parts[0]
    except SpecError:
        return None


def _name(case: Case, *, victims: object) -> str:
    try:
        path = str(case.labels.setting)
    except SpecError:
        path = f"{case.dataset}/{case.model}"
    profile = PROFILES.get(case.profile)
    extra: Mapping[str, tuple[object, object]] = {
        "threat": (case.threat, "server"),
        "profile": (case.profile, "quick"),
        "victims": (victims, profile.victims if profile else None),
    }
    told = ", ".join(f"{key} {value}" for key, (value, usual) in extra.items() if value != usual)
    return f"{path} ({told})" if told else path


def _machine(one: Environment) -> str:
    return (
        f"gitbench {one.gitbench}, torch {one.torch}, torchvision {one.torchvision}, Python {one.python}, {one.platform}, "
        f"{one.device}, {one.threads} thread{'' if one.threads == 1 else 's'}"
    )
