"""A comparison as Markdown, for a pull request's comment."""

from __future__ import annotations

from collections.abc import Sequence

from gitbench.core.figures import figure
from gitbench.core.metric import Metric
from gitbench.core.text import code, escaped
from gitbench.identity.known_metrics import known_metrics
from gitbench.judge.statistics import Interval
from gitbench.judge.verdict import DEFAULT_GATE
from gitbench.publish.comparison import Change, Comparison

_LIMIT = 60_000  # GitHub refuses comments of more than 65536 characters


def markdown(found: Comparison) -> str:
    """The verdict first, then what changed, then what did not, what is missing and what else differs."""
    changed = [change for change in found.changes if change.kind in ("regressed", "improved") or _turned(change)]
    changed.sort(key=lambda change: ("regressed", "unchanged", "unpaired", "improved").index(change.kind))
    rest = [change for change in found.changes if change.kind == "unchanged" and change not in changed]
    unpaired = [change for change in found.changes if change.kind == "unpaired"]
    parts = [_headline(found)]
    if changed:
        parts.append(_table(changed))
    parts += [f"**Why:** {code(change.key.cell)}: {escaped(change.reason)}" for change in found.regressions]
    weaker = [change for change in found.changes if change.key.defense == "none" and change.kind == "improved"]
    if weaker:
        names = ", ".join(code(f"{change.key.model}/{change.key.attack}") for change in weaker)
        parts.append(f"**Undefended, these attacks reach less than before:** {names}. Their cells prove less, not more.")
    parts += [_list("Not comparable", [f"{code(change.key.cell)}: {escaped(change.reason)}" for change in unpaired])]
    granted = [change for change in found.changes if change.kind in ("unchanged", "improved") and change.reason]
    parts += [_list("Judged more leniently", [f"{code(change.key.cell)}: {escaped(change.reason)}" for change in granted])]
    parts += [_list("Missing now", [code(str(key)) for key in found.gone])]
    parts += [_list("New, with nothing to compare with", [code(str(key)) for key in found.new])]
    parts += [_list("What else differs between the runs", [escaped(one) for one in found.differs])]
    if found.changes:
        parts.append("Changes are paired by victim; positive leaks more. The two intervals of a row hold together in 95 % of comparisons.")
    if rest:
        parts.append(f"<details><summary>{len(rest)} unchanged</summary>\n\n{_table(rest)}\n\n</details>")
    text = "\n\n".join(part for part in parts if part) + "\n"
    return text if len(text) <= _LIMIT else f"{text[:_LIMIT].rpartition(chr(10))[0]}\n\n(cut: the rest is what gitbench compare prints)\n"


def _headline(found: Comparison) -> str:
    regressions = len(found.regressions)
    improved = sum(change.kind == "improved" for change in found.changes)
    unpaired = sum(change.kind == "unpaired" for change in found.changes)
    compared = len(found.changes) - unpaired
    if regressions:
        verdict = f"❌ **{regressions} of {compared} cells {'leak' if regressions > 1 else 'leaks'} more than before**"
    elif unpaired:
        verdict = f"❌ **{unpaired} of {len(found.changes)} cells cannot be compared**"
    elif not found.idle:
        verdict = f"✅ **No cell leaks more than before** ({compared} compared)"
    elif compared:
        verdict = "❌ **No defended cell could be compared**"
    else:
        verdict = "❌ **Nothing could be compared**"
    counts = ((improved, "leak less"), (unpaired, "not comparable"), (len(found.gone), "missing"), (len(found.new), "new"))
    told = ", ".join(f"{count} {what}" for count, what in counts if count)
    return f"### gitbench: {verdict}" + (f"; {told}" if told else "")


def _table(changes: Sequence[Change]) -> str:
    lines = [
        "| cell | mean change | trimmed mean | pairs | verdict |",
        "|:--|:--|:--|--:|:--|",
    ]
    for change in changes:
        metric = known_metrics()[change.metric]
        name = code(change.key.cell) + ("" if change.metric in DEFAULT_GATE else f" {change.metric}")
        mark = {"regressed": "❌ ", "improved": "🔽 "}.get(change.kind, "")
        before, after = (word or "unknown" for word in (change.before, change.after))
        verdict = f"{before} → **{after}**" if before != after else before
        figures = " | ".join(_figure(one, metric) for one in (change.mean, change.typical))
        lines.append(f"| {mark}{name} | {figures} | {change.pairs} | {verdict} |")
    return "\n".join(lines)


def _turned(change: Change) -> bool:
    return change.before != change.after and change.kind != "unpaired"


def _figure(found: Interval, metric: Metric) -> str:
    if found.mean is None or found.low is None or found.high is None:
        return "unknown"
    return f"{figure(metric, found.mean, found.low, found.high, sign='+', unit=False)} {metric.unit}".rstrip()


def _list(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"**{title}:**", "", *(f"- {line}" for line in lines)]) if lines else ""
