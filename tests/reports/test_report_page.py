"""Check a report in a real Chromium: sorting, filters, map, themes, keyboard, narrow screens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.reports.table_report import read_report_data, report_html
from pipeline.table import open_table
from pipeline.table.selection import Selection
from tests.reports.browser import NAMES, Browser, chromium
from tests.reports.report_table import HOSTILE, faces, write_faces

ROWS = faces(120)
ROWS[5]["key"] = f"odd/{HOSTILE}.jpg"
VISIBLE = "Array.from(document.querySelectorAll('#table tbody tr'))"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write_faces(folder / "table", ROWS)
    data = read_report_data(Selection(open_table(str(folder / "table"))))
    (folder / "report.html").write_text(report_html(data))
    return folder / "report.html"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = chromium()
    if program is None:
        pytest.skip(f"needs a browser: one of {', '.join(NAMES)}")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def browser(running: Browser, page: Path) -> Iterator[Browser]:
    """Load the page again; check at the end that it sent no request and raised no error."""
    running.requests.clear()
    running.errors.clear()
    running.prefer("light")
    running.open(page)
    running.run("localStorage.clear()")
    yield running
    assert running.requests == [page.as_uri()]
    assert running.errors == []
    assert running.run("typeof stolen") == "undefined"


def column(browser: Browser, name: str) -> list[float | None]:
    """Return the visible values of a column of the table of faces."""
    values: list[float | None] = browser.run(
        f"(() => {{ const i = {index_of(browser, name)}; return {VISIBLE}.map(row => "
        "'v' in row.cells[i].dataset ? Number(row.cells[i].dataset.v) : null); })()"
    )
    return values


def index_of(browser: Browser, name: str) -> int:
    index: int = browser.run(
        "Array.from(document.querySelectorAll('#table thead button')).findIndex("
        f"button => button.title === '{name}')"
    )
    return index


def expected(name: str) -> list[float]:
    return sorted(float(row[name]) for row in ROWS if row[name] == row[name])


def test_columns_sort_by_click_and_by_enter(browser: Browser) -> None:
    place = index_of(browser, "lpips")
    browser.click("#table thead button", place)
    assert column(browser, "lpips") == pytest.approx(expected("lpips")[:50], rel=1e-4)
    browser.press("Enter")  # the click has focused the header
    assert column(browser, "lpips") == pytest.approx(expected("lpips")[:-51:-1], rel=1e-4)
    sorts = "Array.from(document.querySelectorAll('#table thead th')).map(h => h.ariaSort)"
    assert browser.run(sorts)[place] == "descending"
    assert browser.run("document.activeElement.title") == "lpips"
    browser.click("#table thead button", index_of(browser, "id_similarity"))
    for _ in range(2):
        browser.click("#next")
    assert column(browser, "id_similarity")[-1] is None  # faces without a value come last
    assert browser.run("document.querySelector('#page').textContent") == "101–120 of 120"
    assert browser.run("document.querySelector('#next').disabled") is True


def test_filters_by_name_and_range_combine(browser: Browser) -> None:
    browser.click("#text")
    browser.type("ONERROR")
    assert browser.run(f"{VISIBLE}.map(row => row.cells[0].textContent)")[0].startswith(
        "odd/</scri"
    )
    assert (
        browser.run("document.querySelector('#page').textContent")
        == "1–1 of 1, of 120 in this file"
    )
    browser.click("#filters button")
    browser.click("#from")
    browser.type("0.2")
    browser.press("Tab")
    browser.type("0.3")
    inside = [value for value in expected("lpips") if 0.2 <= value <= 0.3]
    assert sorted(v or 0 for v in column(browser, "lpips")) == pytest.approx(inside, rel=1e-4)
    faint = "document.querySelectorAll('.point[opacity=\"0.12\"]').length"
    assert browser.run(faint) == 120 - len(inside)
    browser.type("x")
    browser.click("#text")
    browser.type("no such name")
    assert browser.run("document.querySelector('#page').textContent").startswith("no face, of 120")


def test_points_of_the_map_lead_to_their_rows(browser: Browser) -> None:
    browser.run("document.querySelector('#map').focus()")
    places = (
        "Array.from(document.querySelectorAll('.point')).map(p => Number(p.getAttribute('cx')))"
    )
    order = sorted(range(120), key=browser.run(places).__getitem__)
    for _ in range(3):
        browser.press("ArrowRight")
    browser.press("ArrowLeft")
    picked = "Array.from(document.querySelectorAll('.point.picked')).map(p => Number(p.dataset.i))"
    assert browser.run(picked) == [order[1]]
    browser.press("Enter")
    row = browser.run("(r => [r.dataset.i, r.cells[0].title])(document.querySelector('tr.picked'))")
    assert row[0] == str(order[1])
    assert browser.run("document.querySelector('#point').textContent").startswith(row[1])
    browser.click(".point", 7)
    assert browser.run(picked) != []
    browser.click("#text")
    browser.type("no such name")
    browser.run("document.querySelector('.point[data-i=\"110\"]').dispatchEvent("
                "new MouseEvent('click', {bubbles: true}))")  # fmt: skip
    assert browser.run("document.querySelector('tr.picked')?.dataset.i") == "110"
    assert browser.run("document.querySelectorAll('.point[opacity=\"0.12\"]').length") == 0
    colours = "Array.from(document.querySelectorAll('.point')).map(p => p.classList[1])"
    before = browser.run(colours)
    browser.run("(s => { s.value = '0'; s.dispatchEvent(new Event('change')); })("
                "document.querySelector('#colour'))")  # fmt: skip
    assert sorted(browser.run(colours)) == sorted(before)
    assert browser.run(colours) != before


def test_the_theme_follows_the_system_until_chosen(browser: Browser) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = browser.run(paper)
    browser.prefer("dark")
    dark = browser.run(paper)
    assert (light, dark) == ("rgb(246, 247, 249)", "rgb(18, 22, 28)")
    browser.click("#theme")
    assert (browser.run(paper), browser.run("document.querySelector('#theme').textContent")) == (
        light,
        "Theme: light",
    )
    browser.click("#theme")
    browser.prefer("light")
    assert browser.run(paper) == dark
    assert contrast(browser) == []
    browser.click("#theme")
    assert browser.run(paper) == light
    assert contrast(browser) == []


def contrast(browser: Browser) -> list[Any]:
    """Return the texts whose contrast with their background is below 4.5, as WCAG AA asks."""
    found: list[Any] = browser.run("""(() => {
        const parse = text => text.match(/[\\d.]+/g).map(Number);
        const light = colour => { const [r, g, b] = colour.map(v => { v /= 255;
            return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const paper = e => { for (; e; e = e.parentElement) {
            const c = parse(getComputedStyle(e).backgroundColor);
            if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
        const bad = new Map();
        for (const e of document.querySelectorAll('body *')) {
            if (!Array.from(e.childNodes).some(n => n.nodeType === 3 && n.data.trim())) continue;
            if (['SCRIPT', 'TITLE', 'title'].includes(e.tagName) || e.disabled) continue;
            const style = getComputedStyle(e);
            const ink = parse(e instanceof SVGElement ? style.fill : style.color);
            const [a, b] = [light(ink), light(paper(e))].sort((x, y) => y - x);
            const ratio = (a + 0.05) / (b + 0.05);
            if (ratio < 4.5) bad.set(e.tagName + '.' + e.getAttribute('class'), ratio);
        }
        return Array.from(bad); })()""")
    return found


def test_a_screen_of_400_pixels_needs_no_sideways_scrolling(browser: Browser) -> None:
    browser.resize(400, 800)
    assert browser.run("document.documentElement.scrollWidth") == 400
    wide = browser.run(
        "Array.from(document.querySelectorAll('section, svg, figure, form, .tiles')).filter("
        "e => e.getBoundingClientRect().right > 400).length"
    )
    assert wide == 0
    browser.click("#table thead button", index_of(browser, "l2"))
    assert column(browser, "l2") == pytest.approx(expected("l2")[:50], rel=1e-4)
    reachable = browser.run(
        "Array.from(document.querySelectorAll('a, button, input, select, #map, summary')).filter("
        "e => e.tabIndex < 0).length"
    )
    assert reachable == 0
