"""Write docs/claims.md: every claim, and every verdict on record in results/committed."""

import argparse
from pathlib import Path

from loraudit.base.files import write_text
from loraudit.report.claim_record import page


def main() -> None:
    """Read the arguments and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/claims.md"))
    write_text(parser.parse_args().out, page(Path("results")))


if __name__ == "__main__":
    main()
