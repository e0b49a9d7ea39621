"""Verdicts in words: of a defense in one setting and over all of them, how sure they are, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence

from gitbench.publish.report.data import Bounds, CellMeasured, DefenseInSetting, DefenseOverall, MetricShown, SettingMeasured, Standing

# The gravest first: a defense is as good as its worst cell, and what was not shown acquits nobody.
GRAVITY: tuple[Standing, ...] = ("leaks", "error", "timed out", "no success", "undecided", "no control", "not tested", "n/a", "holds")
NEXT: dict[Standing, str] = {
    "leaks": "Look at what the attacker got. Strengthen the defense, or weaken what you promise; then run the command again.",
    "error": "Read the message, mend the defense or the attack, and run the command again.",
    "timed out": "Raise --gitbench-timeout, or lower the attack's budget.",
    "no success": "Weaken the defense until its updates train the model: what trains nothing is no defense.",
    "undecided": "Measure more victims: add --gitbench-victims auto to the command.",
    "no control": "Raise the attack's budget (--gitbench-profile standard) or take another attack: this one fails even without a defense.",
    "not tested": "Run the command: nothing is known yet.",
    "n/a": "Take a threat model that grants what the attack needs, or another attack.",
    "holds": "",
}
_SHORT: dict[Standing, str] = {
    "leaks": "leaks",
    "error": "could not be measured",
    "timed out": "ran out of time",
    "no success": "is no success: its updates train nothing, or it costs too much",
    "undecided": "is undecided",
    "no control": "was not shown to hold: no attack works even without it",
    "not tested": "was not tested",
    "n/a": "was not tested",
    "holds": "holds",
}


def figure(metric: MetricShown, value: Bounds) -> str:
    """``+16.5 dB [14.3, 18.9]``."""
    if value.mean is None:
        return "unknown"
    digits = max(1, metric.digits - 1)
    sign = "+" if metric.unit == "dB" and metric.name.endswith("gain") else ""
    bounds = "" if value.low is None or value.high is None else f" [{value.low:.{digits}f}, {value.high:.{digits}f}]"
    return f"{value.mean:{sign}.{digits}f}{f' {metric.unit}' if metric.unit else ''}{bounds}"


def worst_of(standings: Sequence[Standing]) -> Standing:
    """The gravest; ``not tested`` of none."""
    return min(standings, key=GRAVITY.index, default="not tested")


def row_standing(cells: Sequence[Standing]) -> Standing:
    """Of a defense in one setting. An attack without a working control proves nothing, unless there is no other."""
    grave = worst_of([one for one in cells if one not in ("no control", "n/a", "not tested")])
    return worst_of(cells) if grave == "not tested" else grave


def next_step(standing: Standing, settings: Sequence[SettingMeasured]) -> str:
    """What to do next; of a defense that holds, the harder questions that were not asked yet."""
    if standing != "holds":
        return NEXT[standing]
    harder = []
    if all(setting.rounds == 1 for setting in settings):
        harder.append("several rounds of the same victims (--gitbench-rounds 16)")
    if all(len(setting.seeds) == 1 for setting in settings):
        harder.append("more seeds (--gitbench-seeds 3)")
    if all(setting.profile == "quick" for setting in settings):
        harder.append("larger budgets (--gitbench-profile standard)")
    if all(setting.threat != "upper-bound" for setting in settings):
        harder.append("the strongest attacker (--gitbench-threat upper-bound)")
    return f"Ask harder questions: {'; '.join(harder)}." if harder else "Keep it: gitbench baseline writes the file to compare with."


def overall(
    defense: str, rows: Sequence[tuple[SettingMeasured, DefenseInSetting]], measured: Sequence[tuple[SettingMeasured, CellMeasured]]
) -> DefenseOverall:
    """A defense over all settings.

    Args:
        defense: its name.
        rows: of it, with their settings.
        measured: its cells, likewise.
    """
    cells = {cell.id: cell for _, cell in measured}
    standing = worst_of([row.standing for _, row in rows])
    concerned = [(setting, row) for setting, row in rows if row.standing == standing]
    setting, row = max(concerned, key=lambda one: _leak(one[0], one[1], cells))
    cell = cells.get(row.strongest or "")
    text = f"{defense} {_SHORT[standing]}"
    if cell is not None and cell.value.mean is not None and standing in ("leaks", "holds", "undecided"):
        strongest = f"{figure(setting.metric, cell.value)} against {cell.attack} on {setting.name}"
        text += f": at most {strongest}, the strongest attack{_yet(measured)}" if standing == "holds" else f": {strongest}"
    elif len(rows) > 1:
        text += f" on {setting.name}"
    return DefenseOverall(
        defense=defense,
        standing=standing,
        sentence=f"{text}.",
        identified=who_is_identified(measured),
        sure=how_sure(rows, untested=sum(cell.standing == "not tested" for _, cell in measured)),
        costs=what_it_costs(rows),
        next=next_step(standing, [one for one, _ in rows]),
        command=setting.command,
        cell=row.strongest,
    )


def _yet(measured: Sequence[tuple[SettingMeasured, CellMeasured]]) -> str:
    """Privacy is not an average: a mean that holds may hide victims that lost everything."""
    past = [(cell.past.share, cell) for _, cell in measured if cell.past is not None and cell.past.share > 0]
    if not past:
        return ""
    share, cell = max(past, key=lambda one: one[0])
    return f"; yet {100 * share:.0f} % of single victims are past the threshold ({cell.attack})"


def who_is_identified(cells: Sequence[tuple[SettingMeasured, CellMeasured]]) -> str:
    """The largest share of victims that any attack on a defense recognised, with its interval."""
    known = [(cell.identified, setting, cell) for setting, cell in cells if cell.identified is not None]
    if not known:
        return "Not tested."
    found, setting, cell = max(known, key=lambda one: (one[0].share, one[0].high))
    crowd = f"among {setting.private_images} private images" if setting.private_images else "among all private images"
    if found.share == 0:
        return f"None of {found.victims} victims was recognised {crowd}: at most {100 * found.high:.0f} % are (95 %)."
    bounds = f"[{100 * found.low:.0f}, {100 * found.high:.0f}]"
    return (
        f"Up to {100 * found.share:.0f} % {bounds} of {found.victims} victims are recognised {crowd}, by {cell.attack} on {setting.name}."
    )


def how_sure(rows: Sequence[tuple[SettingMeasured, DefenseInSetting]], *, untested: int) -> str:
    """On how much evidence a verdict stands."""
    working = {attack for _, row in rows for attack in row.working}
    idle = {attack for _, row in rows for attack in row.without_control} - working
    victims = sorted({setting.victims for setting, _ in rows})
    seeds = max(len(setting.seeds) for setting, _ in rows)
    many = f"{victims[0]}" if len(victims) == 1 else f"{victims[0]} to {victims[-1]}"
    text = f"{many} victims and {_counted(seeds, 'seed')} in {'each of ' if len(rows) > 1 else ''}{_counted(len(rows), 'setting')}, "
    text += f"{_counted(len(working), 'attack')} that {_verb('work', len(working))} without a defense, 95 % intervals."
    if idle:
        text += f" Nothing is proved by {', '.join(sorted(idle))}, which {_verb('fail', len(idle))} even without a defense."
    text += f" Not tested: {_counted(untested, 'cell')}." if untested else ""
    return text + (" One seed says nothing about other seeds." if seeds == 1 else "")


def what_it_costs(rows: Sequence[tuple[SettingMeasured, DefenseInSetting]]) -> str:
    """Accuracy that is lost, in the setting where it is most."""
    found = [(row.cost.lost, row.cost) for _, row in rows if row.cost is not None and row.cost.lost.mean is not None]
    if not found:
        return "Not tested: add --gitbench-cost yes to the command."
    most, cost = max(found, key=lambda one: one[0].mean or 0.0)
    assert most.mean is not None
    bounds = "" if most.low is None or most.high is None else f" [{most.low:.1f}, {most.high:.1f}]"
    text = f"Accuracy falls by {most.mean:.1f} percentage points{bounds}"
    text += f" in the worst of {len(found)} settings" if len(found) > 1 else ""
    return text + (f"; ε = {cost.epsilon:.3g} at δ = {cost.delta:g}." if cost.epsilon is not None and cost.delta is not None else ".")


def verdict_sentence(defenses: Sequence[DefenseOverall]) -> str:
    """The whole report in one sentence."""
    if not defenses:
        return "Nothing was defended here: only undefended controls were measured."
    if len(defenses) == 1:
        return defenses[0].sentence
    groups: dict[Standing, list[str]] = {}
    for one in sorted(defenses, key=lambda one: GRAVITY.index(one.standing)):
        groups.setdefault(one.standing, []).append(one.defense)
    parts = [f"{_some(names)} {_plural(_SHORT[standing], len(names))}" for standing, names in groups.items()]
    return f"Of {len(defenses)} defenses, {'; '.join(parts)}."


def _some(names: Sequence[str]) -> str:
    if len(names) > 3:
        return f"{len(names)} ({', '.join(names[:3])} and others)"
    return f"{len(names)} ({', '.join(names)})"


def _plural(text: str, count: int) -> str:
    if count == 1:
        return text
    for one, many in (
        ("leaks", "leak"),
        ("holds", "hold"),
        ("is ", "are "),
        ("was ", "were "),
        ("its ", "their "),
        (" it costs", " they cost"),
    ):
        text = text.replace(one, many)
    return text.replace("without it", "without them")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{_s(count)}"


def _verb(verb: str, count: int) -> str:
    return f"{verb}s" if count == 1 else verb


def _s(count: int) -> str:
    """The ending of a plural."""
    return "" if count == 1 else "s"


def _leak(setting: SettingMeasured, row: DefenseInSetting, cells: dict[str, CellMeasured]) -> float:
    cell = cells.get(row.strongest or "")
    mean = cell.value.mean if cell is not None else None
    return float("-inf") if mean is None else mean * (1 if setting.metric.higher_leaks else -1)
