"""The page itself: one HTML file that holds all it needs. A policy in its head lets nothing run, or load, that is not in it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources

import jinja2

from gitbench.core.errors import StoreError
from gitbench.publish.report.curves import AXES
from gitbench.publish.report.data import ReportData
from gitbench.publish.report.standing import figure
from gitbench.publish.report.words import GRANTED, KINDS_OF_ATTACKER, SYMBOLS, VERDICTS

SCRIPTS = ("base.js", "matrix.js", "victims.js", "detail.js", "charts.js", "main.js")
MOST_ROWS = 30
"""Defenses that are told before the matrix, which has all of them."""


def render(data: ReportData, pictures: dict[str, str]) -> str:
    """The HTML of one report.

    Args:
        data: what it says.
        pictures: PNG in base64, by the names that ``data`` has.
    """
    environment = jinja2.Environment(
        autoescape=True,  # strangers wrote names and messages
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_read),
    )
    scripts, charts = [_code(_read(name)) for name in SCRIPTS], _code(plotly())
    return environment.get_template("index.html.jinja").render(
        data=data,
        policy=_policy([*scripts, charts]),
        style=_read("style.css"),
        scripts=scripts,
        charts=charts,
        embedded=_inert(data.to_json()),
        pictures=_inert(json.dumps(pictures)),
        figure=figure,
        axes=AXES,
        granted=GRANTED,
        attackers=KINDS_OF_ATTACKER,
        symbols=SYMBOLS,
        verdicts=VERDICTS,
        most_rows=MOST_ROWS,
    )


def plotly() -> str:
    """The charting library, as its wheel has it.

    Raises:
        StoreError: the wheel is not there.
    """
    try:
        return resources.files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError):
        raise StoreError("Expected plotly with its package_data/plotly.min.js, found none. Run: pip install plotly.") from None


def _read(name: str) -> str:
    return resources.files("gitbench.publish.report").joinpath("page", name).read_text(encoding="utf-8")


def _code(text: str) -> str:
    """A script that stands inside a page: nothing in it may end it."""
    return text.replace("\r\n", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _inert(text: str) -> str:
    """JSON that stands inside a page, the same when it is read."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(scripts: Sequence[str]) -> str:
    """Only these scripts run, nothing is loaded from anywhere, nothing is sent."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in scripts)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
