"""The report in a real browser: it opens fast, works by keyboard, on paper and in the dark, and asks nobody for anything."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gitbench.publish.report.build import Report
from report_pages import HOSTILE, cell, enlarged, report_of, usual_results
from results import SAFE

playwright = pytest.importorskip("playwright.sync_api", reason="the browser's tests need playwright: pip install gitbench[dev]")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the browser's tests need Chromium: apt-get install chromium")

Open = Callable[..., "playwright.Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(executable_path=CHROMIUM)
        yield found
        found.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return report_of(folder / "results", usual_results()).write(folder)


@pytest.fixture
def opened(browser: playwright.Browser) -> Iterator[Open]:
    """Opens a page; at the end nothing must have been said on its console, and nothing asked for but the page itself."""
    contexts, said, asked = [], [], []

    def open_page(path: Path, **options: object) -> playwright.Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url) if not request.url.startswith(("data:", "blob:")) else None)
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert all(url.startswith("file:") and url.split("#")[0].endswith("index.html") for url in asked), asked


def column(page: playwright.Page, number: int) -> list[str]:
    return page.locator(f"#list tbody td:nth-child({number})").all_inner_texts()


def test_all_that_it_has_is_shown_without_an_error_or_a_request(written: Path, opened: Open) -> None:
    page = opened(written)
    assert page.locator("h1").inner_text().endswith("Of 2 defenses, 1 (pruning(rate=0.5)) leaks; 1 (clipping(max_norm=1.0)) holds.")
    for chart in ("chart-victims", "chart-cost", "chart-curves"):
        page.locator(f"#{chart}").scroll_into_view_if_needed()
        page.wait_for_selector(f"#{chart} .main-svg")
    assert page.locator("#chart-victims .box").count() or page.locator("#chart-victims .trace").count()
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth && image.hasAttribute('alt'))")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    with page.expect_download() as download:
        page.click("#save")
    assert Path(download.value.path()).read_text(encoding="utf-8").startswith('{"version":1,')


def test_cells_are_sorted_and_filtered(written: Path, opened: Open) -> None:
    page = opened(written)
    page.click("#list [data-sort=leak]")
    figures = [float(text.split()[0]) for text in column(page, 5)]
    assert figures == sorted(figures, reverse=True)
    assert page.locator("#list th[aria-sort=descending]").inner_text() == "Leakage [95 %] ↓"
    page.click("#list [data-sort=leak]")
    assert [float(text.split()[0]) for text in column(page, 5)] == sorted(figures)
    page.select_option("#verdict", "holds")
    assert page.inner_text("#status") == "4 of 12 cells pass the filters."
    assert set(column(page, 2)) == {"clipping(max_norm=1.0)"}
    page.fill("#search", "RIDGE batch-4")
    playwright.expect(page.locator("#status")).to_contain_text(re.compile("^1 of 12"))
    page.click("#filters [type=reset]")
    playwright.expect(page.locator("#status")).to_contain_text(re.compile("^12 of 12"))
    page.click("#grid [data-sort='attack:ridge']")
    assert page.locator("#grid tbody th").all_inner_texts()[0] == "none"
    page.select_option("#setting", "1")
    assert "batch-4" in page.inner_text("#charted") or page.evaluate("!drawn.size")
    page.click("[data-flag]")
    assert page.locator("#flag").input_value() == "few-victims"


def test_a_cell_shows_its_worst_victims_first_and_a_slider(written: Path, opened: Open) -> None:
    page = opened(written)
    page.locator("#grid button[data-standing=leaks]").first.click()
    names = page.locator("#detail .thumbs button").evaluate_all("all => all.map((one) => one.getAttribute('aria-label'))")
    assert [name.split(":")[0] for name in names] == ["victim 2", "victim 3", "victim 1", "victim 0"]
    slider = page.locator("#detail input[type=range]")
    slider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert page.locator("#detail .compare").evaluate("one => one.style.getPropertyValue('--cut')") == "60%"
    page.locator("#detail .thumbs button").nth(1).click()
    assert "victim 3" in page.inner_text("#detail #stage")
    page.wait_for_selector("#chart-cell .main-svg")
    told = page.inner_text("#detail")
    for words in (
        "100 % of 4 [51, 100] victims recognised among 512 private images",
        "upper-bound): not tested",
        "Certified",
        "few-victims",
    ):
        assert words in told, words
    link = page.url
    assert "#c" in link


def test_the_keyboard_is_enough(written: Path, opened: Open) -> None:
    page = opened(written)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the matrix"
    first = page.locator("#grid button.cell").first
    first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.getElementById('detail').open")
    assert page.evaluate("document.getElementById('detail').contains(document.activeElement)")
    page.keyboard.press("Escape")
    assert not page.evaluate("document.getElementById('detail').open")
    assert page.evaluate("document.activeElement.classList.contains('cell')")
    page.locator("#list [data-sort=defense]").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.dataset.sort") == "defense"
    assert column(page, 2) == sorted(column(page, 2))
    unnamed = (
        "[...document.querySelectorAll('button, select, input')].filter((one) => !(one.textContent || one.labels?.length || one.ariaLabel))"
    )
    assert page.evaluate(f"{unnamed}.length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_stands_in_the_way_of_a_screen_reader(browser: playwright.Browser, written: Path, scheme: str) -> None:
    """By the rules of axe, which needs a page that lets it in."""
    axe = pytest.importorskip("axe_core_python", reason="needs axe-core-python: pip install gitbench[dev]")
    context = browser.new_context(bypass_csp=True, color_scheme=scheme)
    page = context.new_page()
    page.goto(written.as_uri())
    page.evaluate("for (const id of Object.keys(CHARTS)) drawChart(id)")
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    assert page.evaluate("axe.run(document)")["violations"] == []
    page.locator("[data-open]").first.click()
    page.wait_for_selector("#chart-cell .main-svg")
    assert page.evaluate("axe.run(document)")["violations"] == []
    context.close()


def test_it_is_dark_in_the_dark(written: Path, opened: Open) -> None:
    def colours(page: playwright.Page) -> tuple[str, str]:
        page.locator("#chart-victims").scroll_into_view_if_needed()
        page.wait_for_selector("#chart-victims .xtick text")
        return (
            page.evaluate("getComputedStyle(document.body).backgroundColor"),
            page.locator("#chart-victims .xtick text").first.evaluate("one => getComputedStyle(one).fill"),
        )

    light = opened(written, color_scheme="light")
    assert colours(light) == ("rgb(255, 255, 255)", "rgb(27, 31, 36)")
    assert colours(opened(written, color_scheme="dark")) == ("rgb(13, 17, 23)", "rgb(230, 237, 243)")
    light.emulate_media(color_scheme="dark")  # while it is open
    playwright.expect(light.locator("#chart-victims .xtick text").first).to_have_css("fill", "rgb(230, 237, 243)")


def test_it_prints(written: Path, opened: Open, tmp_path: Path) -> None:
    page = opened(written, color_scheme="dark")
    page.emulate_media(media="print")
    for hidden in ("nav", ".filters", "#save"):
        assert not page.locator(hidden).first.is_visible(), hidden
    assert page.locator("h1").is_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")  # also of charts that nobody has scrolled to
    assert page.locator("#chart-victims .main-svg").count() > 0
    assert page.locator("#chart-curves .main-svg").count() > 0
    assert page.locator("#chart-victims .xtick text").first.evaluate("one => getComputedStyle(one).fill") == "rgb(0, 0, 0)"
    assert page.locator("#chart-victims .main-svg").first.evaluate("one => one.getBoundingClientRect().width") <= 700
    assert page.pdf(path=tmp_path / "page.pdf", format="A4").startswith(b"%PDF")


def test_on_a_phone_nothing_runs_over_the_edge(written: Path, opened: Open) -> None:
    page = opened(written, viewport={"width": 400, "height": 800})
    page.evaluate("for (const id of Object.keys(CHARTS)) drawChart(id)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.locator("[data-open]").first.click()
    assert page.locator("#detail").evaluate("one => one.scrollWidth <= one.clientWidth + 1")


def test_what_strangers_wrote_does_nothing(tmp_path: Path, opened: Open) -> None:
    bold = "<b>pruning</b><img src=x onerror=window.hacked=1>"
    results = [cell(attack=HOSTILE), cell(attack=HOSTILE, defense=bold)]
    results = [one.model_copy(update={"flags": (HOSTILE,), "settings": {"a": HOSTILE}}) for one in results]
    page = opened(report_of(tmp_path / "results", results).write(tmp_path))
    page.evaluate("for (const id of Object.keys(CHARTS)) drawChart(id)")
    page.locator("[data-open]").first.click()
    page.wait_for_selector("#chart-cell .main-svg")
    assert bold in page.inner_text("#detail")
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert page.locator("img:not([src^='data:image/png'])").count() == 0
    assert page.locator("b", has_text="pruning").count() == 0


def test_a_chart_without_data_says_so_and_comes_back(tmp_path: Path, opened: Open) -> None:
    results = [*usual_results(), cell(model="mlp"), cell(SAFE, model="mlp", defense="pruning(rate=0.5)")]
    page = opened(report_of(tmp_path / "results", results).write(tmp_path))
    page.locator("#chart-cost").scroll_into_view_if_needed()
    page.wait_for_selector("#chart-cost .main-svg")
    page.select_option("#setting", "2")
    assert "Not tested: what the defenses cost. Add to the command: --gitbench-cost yes" in page.inner_text("#chart-cost")
    assert page.evaluate("document.getElementById('charted').textContent").startswith("Setting: photos/mlp")
    page.select_option("#setting", "0")
    assert page.locator("#chart-cost .main-svg").count() > 0
    assert page.locator("#chart-cost .note").count() == 0


def test_private_pictures_are_not_there(tmp_path: Path, opened: Open) -> None:
    results = [cell(dataset="npz(path='x.npz')"), cell(dataset="npz(path='x.npz')", defense="pruning(rate=0.5)")]
    page = opened(report_of(tmp_path / "results", results).write(tmp_path))
    page.locator("[data-open]").first.click()
    assert "Pictures are left out: the images of npz(path='x.npz') are private." in page.inner_text("#detail")
    assert page.locator("img").count() == 0


def test_ten_thousand_cells_open_in_three_seconds(tmp_path: Path, opened: Open) -> None:
    small = report_of(tmp_path / "results", usual_results())
    large = Report(enlarged(small.data, defenses=250, attacks=40), small.pictures)
    path = large.write(tmp_path)
    opened(tmp_path / "index.html")  # the browser itself is warm
    start = time.perf_counter()
    page = opened(path)
    seconds = time.perf_counter() - start
    assert len(large.data.cells) == 10_000
    assert page.inner_text("#status") == "10000 of 10000 cells pass the filters."
    assert seconds <= 3, f"{seconds:.1f} s"
    start = time.perf_counter()
    page.click("#list [data-sort=leak]")
    page.fill("#search", "rate=0.249 iterations=40")
    playwright.expect(page.locator("#status")).to_contain_text(re.compile("^1 of"))
    assert time.perf_counter() - start <= 3
