"""The built documentation: no warning, nothing from elsewhere, found by search, read by all."""

import json
import os
import re
import shutil
import subprocess

import pytest

pytestmark = pytest.mark.slow

SOUGHT = {
    "HF_TOKEN": "gpu_box.html",
    "mirror": "gpu_box.html",
    "offline": "gpu_box.html",
    "decoder": "decoder.html",
    "llama": "decoder.html",
}
"""Words that a reader looks for, and the page that must be among what the search finds."""

MAIN = [
    *("index", "tutorial", "gpu_box", "studies", "fair_comparison", "report", "undecided"),
    *("claims", "faq", "cli", "configuration", "adapters", "repository/CONTRIBUTING"),
]
"""The pages that are looked at in a browser: one or more of each kind."""
KINDS = ("index", "studies", "adapters", "repository/CONTRIBUTING")
"""One page of each kind: pages of a kind have their colours from the same style sheet."""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build the site once: its folder, and how the command ended."""
    if not shutil.which("mkdocs"):
        pytest.skip("mkdocs is not installed (the docs extra)")
    folder = tmp_path_factory.mktemp("site")
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # of the next major version
    command = ["mkdocs", "build", "--strict", "--site-dir", str(folder)]
    return folder, subprocess.run(command, capture_output=True, text=True, env=quiet)


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(built):
    site, done = built
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    for page in site.rglob("*.html"):
        if "committed" not in page.parts:
            loaded = re.findall(r"<(?:script|link|img)[^>]*https?://[^>]*>", page.read_text())
            assert not loaded, (page, loaded)


def test_the_search_finds_what_readers_look_for(built):
    index = json.loads((built[0] / "search/search_index.json").read_text())["docs"]
    for word, page in SOUGHT.items():
        found = {
            part["location"].partition("#")[0]
            for part in index
            for token in re.split(r"<[^>]*>|[\s\-]+", f"{part['title']} {part['text']}".lower())
            if token.startswith(
                word.lower()
            )  # as the site's search splits texts and completes words
        }
        assert page in found, (word, found)


@pytest.fixture(scope="module")
def browser():
    import browsing  # skips without playwright

    if browsing.BROWSER is None:
        pytest.skip("there is no browser on PATH")
    with browsing.launched() as browser:
        yield browser


@pytest.mark.parametrize(
    ("scheme", "names", "rules"),
    [
        pytest.param("light", MAIN, "NO_CONTRAST", id="every page but for contrast"),
        pytest.param("light", KINDS, "COLOURS", id="light colours"),
        pytest.param("dark", KINDS, "COLOURS", id="dark colours"),
        pytest.param("light", MAIN, "", id="light", marks=pytest.mark.long),
        pytest.param("dark", MAIN, "", id="dark", marks=pytest.mark.long),
    ],
)
def test_axe_finds_no_violation_on_the_main_pages(built, browser, scheme, names, rules):
    """Search without a name, pale tabs and code, and links in text told by colour alone."""
    import browsing

    context = browser.new_context(color_scheme=scheme, offline=True)
    for name in names:
        tab = context.new_page()
        tab.goto((built[0] / f"{name}.html").resolve().as_uri())
        dark = tab.evaluate("document.body.dataset.mdColorScheme") == "slate"
        assert dark == (scheme == "dark")
        browsing.load_axe(tab)
        assert browsing.violations(tab, getattr(browsing, rules, None)) == [], name
        tab.close()
    context.close()
