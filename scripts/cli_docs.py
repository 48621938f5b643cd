"""Write docs/cli.md, the reference of the command `loraudit`, from the command itself."""

import argparse
from pathlib import Path

from typer.cli import get_docs_for_click
from typer.main import get_command

from loraudit.base.files import write_text
from loraudit.tools.cli import app


def page() -> str:
    """Return the page's text."""
    group = get_command(app)
    context = group.make_context("loraudit", [], resilient_parsing=True)
    return get_docs_for_click(obj=group, ctx=context, name="loraudit")


def main() -> None:
    """Read the arguments and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/cli.md"))
    write_text(parser.parse_args().out, page())


if __name__ == "__main__":
    main()
