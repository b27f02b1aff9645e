"""Read the plan and every run record before anything is made of them.

    python workflow/scripts/check.py --plan results/NAME/plan.json --out FILE

Writes one line to FILE. Exit status 2, with one line that names the file, when a record is damaged, was changed, or
is of another cell, other code or other data than the plan says; then FILE is not written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    from analysis import frames
    from sparcl.errors import RunError, UserError
    from sparcl.files import atomic

    parser = argparse.ArgumentParser(description="Check the run records of a plan.")
    parser.add_argument("--plan", required=True, type=Path, help="plan.json; records lie in runs/ beside it")
    parser.add_argument("--out", required=True, type=Path, help="file to write when all records can be used")
    options = parser.parse_args(argv)
    try:
        results = frames.collect(options.plan)
        atomic.write_text(options.out, f"{len(results.records)} of {len(results.frame)} cells have a record\n")
    except (UserError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
