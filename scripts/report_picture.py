"""Make docs/assets/report.png, a picture of the top of a committed report, with a browser.

The picture holds the SHA-256 of the page that it is of, so that a test can tell when it is old.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image, PngImagePlugin

from loraudit.base.errors import UserError, run_program
from loraudit.base.files import sha256

PAGE = Path("results/committed/published/report.html")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SIZE = {"width": 1280, "height": 800}
KEY = "sha256 of the page"
COLOURS = 64
"""Colours of the picture: enough for text and plots, a third of the bytes."""


def photograph(page: Path) -> bytes:
    """Return a PNG of the top of a page, in light colours.

    Raises:
        UserError: there is no browser of Chromium's kind.
    """
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise UserError(f"no browser: install one of {', '.join(BROWSERS)}")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        view = browser.new_page(viewport=SIZE, color_scheme="light")
        view.goto(page.resolve().as_uri())
        picture = view.screenshot()
        browser.close()
    return picture


def main() -> None:
    """Read the arguments and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--out", type=Path, default=Path("docs/assets/report.png"))
    arguments = parser.parse_args()
    told = PngImagePlugin.PngInfo()
    told.add_text(KEY, sha256(arguments.page))
    with Image.open(io.BytesIO(photograph(arguments.page))) as picture:
        small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        small.save(arguments.out, pnginfo=told, optimize=True)


if __name__ == "__main__":
    run_program(main)
