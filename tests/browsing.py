"""A real browser for tests of pages, and the rules of accessibility of axe-core.

It is a Chromium or Chrome on PATH; none is ever downloaded. A test module that imports this is left
out where playwright is not installed, and takes `MARKS` as its `pytestmark`.
"""

import contextlib
import os
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

NAMES = runpy.run_path("scripts/report_picture.py")["BROWSERS"]
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
MARKS = [
    pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(NAMES)} is on PATH"),
    pytest.mark.slow,
]
SCHEMES = ["light", "dark"]


@contextlib.contextmanager
def launched() -> Iterator:
    """Start a browser, and close it at the end."""
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # Chromium refuses root otherwise
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=sandbox)
        yield browser
        browser.close()


def load_axe(tab) -> None:
    """Load axe-core into a page."""
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is missing")
    tab.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text())


COLOURS = {"runOnly": ["color-contrast", "link-in-text-block"]}
"""Options of axe-core: the rules that look at colours, which alone differ between schemes."""
NO_CONTRAST = {"rules": {"color-contrast": {"enabled": False}}}
"""Options of axe-core: all rules but the one that takes most of the time on a long page."""


def violations(tab, options: dict | None = None) -> list:
    """Return the rules that axe-core, which is loaded, finds broken, each with some elements.

    Without options they are those of WCAG 2.0 to 2.2, A and AA, and best practices.
    """
    run = "options => axe.run(options).then(done => done.violations)"
    found = tab.evaluate(run, options or {})
    return [(one["id"], [node["html"][:120] for node in one["nodes"][:3]]) for one in found]
