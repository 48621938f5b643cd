"""The report in a real browser: it opens alone, sorts, filters, prints, and can be read.

The page under test is `page.render`'s, of small tables whose names are as hostile as text can be;
the committed reports are opened too. Needs a Chromium or Chrome on PATH; none is ever downloaded.
"""

import base64
from pathlib import Path

import pytest
from remade_page import remade_page
from test_page import HOSTILE, WORDS, made_page

from browsing import COLOURS, MARKS, SCHEMES, launched, load_axe, violations
from loraudit.report.page import render
from loraudit.report.table_registry import TABLES

pytestmark = MARKS

PUBLISHED = Path("results/committed/published/report.html")
COMMITTED = [
    pytest.param(
        path,
        id=path.parent.name,
        marks=[] if path.parent.name in ("quickstart", "published") else [pytest.mark.long],
    )
    for path in sorted(Path("results/committed").glob("*/report.html"))
]
SIZES = [(1440, 900), (390, 844)]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return made_page(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def file(page, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(page))
    return path


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture
def opened(browser):
    """Give a function that opens a file; nothing may be requested or go wrong until the end."""
    wrong, contexts = [], []

    def open_file(path: Path, size=SIZES[0], scheme="light"):
        width, height = size
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: wrong.append(f"console: {message.text}"))
        tab.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        tab.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
        tab.on("request", lambda request: _local(request.url) or wrong.append(request.url))
        tab.goto(path.resolve().as_uri())
        return tab

    yield open_file
    for context in contexts:
        context.close()
    assert wrong == []


def _local(url: str) -> bool:
    return url.startswith(("file:", "data:"))


VIEWS = [(size, scheme) for size in SIZES for scheme in SCHEMES]

CONTRASTS = """() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(c => c / 255)
      .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const found = channels(getComputedStyle(e).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const found = [];
  const measure = (element, style, what) => {
    const pair = [light(channels(style.color)), light(behind(element))].sort((a, b) => b - a);
    found.push([(pair[0] + 0.05) / (pair[1] + 0.05), what]);
  };
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    const control = element.matches("input, select");
    if ((own || control) && !element.closest("script, option")) {
      const what = `${element.tagName}: ${element.textContent.trim().slice(0, 40)}`;
      measure(element, getComputedStyle(element), what);
    }
    if (element.matches("th button")) {
      measure(element, getComputedStyle(element, "::after"), "arrow");
    }
  }
  return found;
}"""


def check_view(tab) -> None:
    """Nothing overflows, each image is described, and text stands out from what is behind it."""
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    alts = tab.eval_on_selector_all("img", "images => images.map(image => image.alt)")
    assert alts and all(len(alt) > 30 and any(c.isdigit() for c in alt) for alt in alts)
    assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    contrasts = tab.evaluate(CONTRASTS)
    assert len(contrasts) > 50
    assert [found for found in contrasts if found[0] < 4.5] == []


@pytest.mark.parametrize(("size", "scheme"), VIEWS)
def test_it_opens_alone_and_can_be_read(file, opened, size, scheme):
    tab = opened(file, size, scheme)
    check_view(tab)
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(int(c) for c in background.strip("rgb()").split(",")) < 3 * 128
    assert dark == (scheme == "dark")
    filters = "images => images.map(image => getComputedStyle(image).filter)"
    turned = {"dark": "invert(0.92) hue-rotate(180deg)", "light": "none"}
    assert set(tab.eval_on_selector_all(".plot img", filters)) == {turned[scheme]}


@pytest.mark.parametrize("path", COMMITTED)
@pytest.mark.parametrize(("size", "scheme"), VIEWS)
def test_committed_reports_can_be_read(path, opened, size, scheme):
    check_view(opened(path, size, scheme))


def test_hostile_names_are_only_text(file, opened):
    tab = opened(file)
    assert tab.title() == "loraudit: small"
    cells = tab.locator("table[data-table=verdicts] td:first-child").all_text_contents()
    assert cells.count(HOSTILE) == 6
    assert tab.locator("img[src=x]").count() == 0
    alts = tab.eval_on_selector_all("img", "images => images.map(image => image.alt)")
    assert any(HOSTILE in alt for alt in alts)


COLUMNS = ("task", "verdict", "difference", "95 % interval", "disk", "p")
"""The first columns of the table of verdicts on the page."""


def column(tab, number: int) -> list[str]:
    rows = tab.locator(f"table[data-table=verdicts] tbody tr:visible td:nth-child({number + 1})")
    return rows.all_text_contents()


ORDERS = {
    2: lambda table: table.difference.replace("", "nan").astype(float),
    3: lambda table: table["95 % interval"].str.extract(r"\[([+-][\d.]+)")[0].astype(float),
    4: lambda table: table.disk.map(lambda text: _bytes(*text.split())),
    5: lambda table: table.p.astype(float),
}


def _bytes(count: str, unit: str) -> float:
    return float(count) * {"kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]


@pytest.mark.parametrize("number", ORDERS)
def test_a_column_sorts_by_its_numbers_both_ways(file, page, opened, number):
    tab, table = opened(file), page.tables["verdicts"]
    tab.get_by_role("button", name="All 12 rows").click()
    head = tab.locator("table[data-table=verdicts] th").nth(number)
    for ascending, word in ((True, "ascending"), (False, "descending")):
        head.locator("button").click()
        order = ORDERS[number](table).sort_values(ascending=ascending, kind="stable").index
        assert column(tab, number) == list(table[COLUMNS[number]][order])
        assert head.get_attribute("aria-sort") == word
    others = tab.locator("table[data-table=verdicts] th[aria-sort=none]")
    assert others.count() == tab.locator("table[data-table=verdicts] th").count() - 1


def verdicts(tab):
    """Return the tools above the table of verdicts."""
    return tab.locator(".tools", has_text="Verdict").first


def test_keys_reach_the_filter_and_the_headers(file, opened):
    tab = opened(file)
    verdicts(tab).locator("input").focus()
    tab.keyboard.type("TASK 4")
    assert column(tab, 0) == ["task 4"]
    tab.keyboard.press("ControlOrMeta+A")
    tab.keyboard.press("Delete")
    for _ in range(2):  # the select, the button that shows all rows
        tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    assert len(column(tab, 0)) == 12
    tab.keyboard.press("Tab")
    if tab.evaluate("document.activeElement.matches('.box')"):  # it scrolls where it is too long
        tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "task"
    tab.keyboard.press("ArrowRight")  # one header is a stop of Tab, arrows lead to the others
    assert tab.evaluate("document.activeElement.textContent") == "verdict"
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("document.activeElement.textContent") == "difference"
    tab.keyboard.press("Enter")
    assert column(tab, 2)[0] == "-0.3"
    tab.keyboard.press("Space")
    assert column(tab, 2)[0] == "+10.0"
    assert column(tab, 2)[-1] == ""
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for _ in range(2):
        tab.keyboard.press("ArrowLeft")
    assert tab.evaluate("document.activeElement.textContent") == "task"


def test_a_long_table_shows_its_first_rows_until_all_are_asked_for(file, page, opened):
    tab, first = opened(file), TABLES["verdicts"].first
    button = tab.get_by_role("button", name="All 12 rows")
    assert column(tab, 2) == list(page.tables["verdicts"].difference[:first])
    head = tab.locator("table[data-table=verdicts] th").nth(2).locator("button")
    for _ in range(2):
        head.click()
    assert column(tab, 2)[0] == "+10.0" and len(column(tab, 2)) == first  # the first as sorted
    button.click()
    assert len(column(tab, 1)) == 12
    tab.get_by_role("button", name=f"First {first} rows").click()
    assert len(column(tab, 1)) == first


def test_paper_has_all_rows_of_a_short_table_and_the_count_of_a_long_one(file, page, opened):
    """Rows that were folded on the screen were left out of the print without a word."""
    tab, first = opened(file), TABLES["verdicts"].first
    printed = tab.locator(".box:has(table[data-table=verdicts]) + .printed")
    assert len(column(tab, 1)) == first and not printed.is_visible()
    tab.emulate_media(media="print")
    assert column(tab, 2) == list(page.tables["verdicts"].difference)
    assert printed.text_content() == ""
    headings = tab.locator("h2:visible").all_text_contents()
    assert "Provenance" not in headings and "Beside published numbers" in headings
    tab.emulate_media(media="screen")
    verdicts(tab).locator("select").select_option("reproduced")
    tab.emulate_media(media="print")
    assert len(column(tab, 1)) == 3 and printed.text_content() == "Printed: 3 of 12 rows."


def test_numbers_stand_right_and_headers_stay(file, opened):
    tab = opened(file)
    style = "(cells, name) => [...new Set(cells.map(cell => getComputedStyle(cell)[name]))]"
    table = "table[data-table=verdicts]"
    assert tab.eval_on_selector_all(f"{table} :is(th, td):nth-child(3)", style, "textAlign") == [
        "right"
    ]
    assert "right" not in tab.eval_on_selector_all(f"{table} td:first-child", style, "textAlign")
    assert tab.eval_on_selector_all("th", style, "position") == ["sticky"]


def test_a_link_opens_what_its_target_is_folded_in(file, opened):
    tab = opened(file)
    folded = tab.locator("details:has(table[data-table=protocol])").first
    assert not folded.get_attribute("open")
    folded.evaluate("details => { details.querySelector('h3').id = 'folded'; }")
    tab.evaluate("location.hash = '#folded'")
    tab.wait_for_function("document.querySelector('details:has(#folded)').open")


def test_filters_by_text_and_by_verdict(file, opened):
    tab = opened(file)
    tools = verdicts(tab)
    search, words, count = (tools.locator(kind) for kind in ("input", "select", "[role=status]"))
    assert words.locator("option").all_text_contents() == ["all", *WORDS]
    words.select_option("reproduced")  # not "not reproduced"
    assert count.text_content() == "3 of 12 rows"
    assert column(tab, 1) == ["● reproduced"] * 3
    words.select_option("")
    search.fill("<script>")
    assert count.text_content() == "6 of 12 rows"
    search.fill("no such row")
    assert column(tab, 0) == []


@pytest.mark.parametrize("size", SIZES)
def test_contents_lead_to_every_section_and_stay_in_sight(file, opened, size):
    tab = opened(file, size)
    links = tab.eval_on_selector_all("nav a", "links => links.map(a => a.getAttribute('href'))")
    ids = tab.eval_on_selector_all("[id]", "found => found.map(element => '#' + element.id)")
    assert set(links) <= set(ids)
    assert len(links) == len(set(links)) > 8
    if size[0] < 600:
        tab.locator("nav summary").click()
    tab.locator("nav a[href='#provenance']").click()
    assert tab.locator("h2#provenance").is_visible()
    box = tab.locator("nav summary").bounding_box()
    assert 0 <= box["y"] < 40
    heading = tab.locator("h2#provenance").bounding_box()
    assert box["y"] + box["height"] <= heading["y"] < size[1] or size[0] > 600


def test_every_figure_brings_its_numbers_and_its_command(file, page, opened):
    tab = opened(file)
    for name, path in page.figures.items():
        link = tab.locator(f"#figure-{name} a[download]")
        kind, _, data = link.get_attribute("href").partition(",")
        assert kind == "data:text/csv;base64"
        assert base64.b64decode(data) == path.with_suffix(".csv").read_bytes()
        assert link.get_attribute("download") == f"small-{name}.csv"
        assert page.remake[name] in tab.locator(f"#figure-{name} figcaption").text_content()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_prints_black_on_white_without_controls(file, opened, scheme):
    tab = opened(file, (794, 1123), scheme)  # A4
    assert tab.pdf(format="A4").startswith(b"%PDF")
    tab.emulate_media(media="print")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not tab.locator("nav, .tools").first.is_visible()
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert all(contrast >= 4.5 for contrast, _ in tab.evaluate(CONTRASTS))


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """Make the quickstart's page from its committed runs: what a first user sees."""
    return remade_page("quickstart", tmp_path_factory.mktemp("quickstart"))


HIGHEST, MOST_PAGES, MOST_STOPS = 6000, 5, 60
"""Pixels of the quickstart's page at 1440 wide, its printed pages, and stops of the Tab key."""

STOPS = """() => [...document.querySelectorAll(
  "a[href], button, input, select, summary, [tabindex='0']"
)].filter(e => e.tabIndex >= 0 && e.checkVisibility()).length"""

CUT = """() => [...document.querySelectorAll(".box")]
  .filter(box => box.checkVisibility() && box.scrollWidth > box.clientWidth)
  .map(box => box.querySelector("table, img").outerHTML.slice(0, 80))"""


def test_the_quickstart_is_short_on_screen_and_on_paper_and_nothing_is_cut(quickstart, opened):
    tab = opened(quickstart)
    assert tab.evaluate("document.documentElement.scrollHeight") <= HIGHEST
    assert tab.evaluate(CUT) == []
    assert tab.evaluate(STOPS) <= MOST_STOPS
    pages = tab.pdf(format="A4").count(b"/Type /Page\n")
    assert 1 < pages <= MOST_PAGES


def test_the_quickstart_opens_with_its_answer_and_the_figure_of_scores(quickstart, opened):
    tab = opened(quickstart)
    answer, hero, belief = (tab.locator(name) for name in (".answer", ".top figure", ".belief"))
    text = answer.text_content()
    assert "The best adapter is" in text and "n = " in text and "beside full fine-tuning" in text
    for part in (answer, hero, belief):
        box = part.bounding_box()
        assert box["y"] + box["height"] < 1000
    assert hero.bounding_box()["y"] == pytest.approx(answer.bounding_box()["y"], abs=20)
    terms = belief.locator("dt").all_text_contents()
    assert terms == ["Seeds", "Rows", "Tuned", "Sick runs", "Comparable", "Machine"]


def test_scores_are_seen_beside_the_cells_names_on_a_phone(quickstart, opened):
    tab = opened(quickstart, SIZES[1])
    cells = tab.locator("table[data-table=summary] tbody tr:first-child td")
    for cell in (cells.nth(0), cells.nth(1)):
        box = cell.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= SIZES[1][0]
    assert "±" in cells.nth(1).text_content()


def test_verdicts_are_seen_and_figures_are_whole_on_a_phone(quickstart, opened):
    """Verdicts stood off the screen, and figures were cut at the right."""
    for path, name in ((quickstart, "claims"), (PUBLISHED, "verdicts")):
        tab = opened(path, SIZES[1])
        cells = tab.locator(f"table[data-table={name}] td.word:visible")
        assert cells.count() > 0
        for number in range(cells.count()):
            cell = cells.nth(number).bounding_box()
            assert cell["x"] >= 0 and cell["x"] + cell["width"] <= SIZES[1][0]
        cut = "boxes => boxes.filter(box => box.scrollWidth > box.clientWidth).length"
        assert tab.locator(".plot:visible").count() > 0
        assert tab.eval_on_selector_all(".plot", cut) == 0


RAW = ("equal_share", "mcnemar_p", "{}", "None", "NaN", "nan")


def test_the_quickstart_has_no_names_of_programs_in_its_tables(quickstart, opened):
    tab = opened(quickstart)
    for texts in tab.eval_on_selector_all("th, td", "cells => cells.map(c => c.textContent)"):
        assert texts.strip() not in RAW


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["file", "quickstart", "published"])
def test_axe_finds_no_violation(request, opened, name, scheme):
    """Neither as the page opens nor with everything unfolded; dark, of the rules on colours."""
    path = PUBLISHED if name == "published" else request.getfixturevalue(name)
    tab = opened(path, scheme=scheme)
    load_axe(tab)
    options = COLOURS if scheme == "dark" else None
    assert violations(tab, options) == []
    tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert violations(tab, options) == []
