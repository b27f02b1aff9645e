"""What the planned contrasts could tell: the difference that n seeds tell, and the seeds that a difference needs."""

from __future__ import annotations

import math

from analysis.configurations import missing_of
from analysis.contrasts import Finding, analysis_of, compared, findings
from analysis.frames import Results
from analysis.statistics import detectable, deviation_interval, seeds_needed
from analysis.tables.columns import SEEDS
from analysis.typeset import Column, Row, Table, fixed


def table(results: Results) -> Table:
    """The power of each planned contrast, from the deviation of its own differences over seeds."""
    analysis = analysis_of(results)
    margin, wanted = analysis["smallest_difference"], analysis["power"]
    found = [finding for finding in findings(results) if finding.contrast.is_planned]
    tests = max(1, sum(not math.isnan(finding.p) for finding in found))
    level = analysis["alpha"] / tests
    columns = [
        Column("contrast", "Difference"), Column("settings", "Settings", "integer"), SEEDS,
        Column("sd", "Deviation over seeds", "number", "points"),
        Column("interval", "Its 95 % interval", unit="points"),
        Column("detectable", "Difference told by n seeds", "number", "points"),
        Column("seeds", f"Seeds for {margin:g} points", "integer"),
        Column("seeds_high", "Seeds, deviation at its upper end", "integer"),
        Column("sd_low", "", "number", csv_only=True), Column("sd_high", "", "number", csv_only=True),
        Column("alpha", "", "number", csv_only=True),
    ]  # fmt: skip
    rows = [_row(finding, level, wanted) for finding in found]
    notes = [
        f"Two-sided paired t-test at {analysis['alpha']:g} over {tests} tests, the level of Holm's first step "
        f"({level:.3g}), with a power of {100 * wanted:g} % (noncentral t). Deviation: of the differences over seeds, "
        "each averaged over the settings; it is itself an estimate, so the seeds needed are given for the upper end of "
        "its interval (chi-squared), too. More settings make the deviation smaller.",
        "A difference smaller than the one told by n seeds may exist and stay unseen.",
    ]
    missing = missing_of(compared(results, planned_only=True))
    return Table("power", "What the primary analysis could tell", columns, rows, notes, missing)


def _row(finding: Finding, level: float, wanted: float) -> Row:
    paired, margin = finding.paired, finding.margin
    low, high = deviation_interval(paired.sd, paired.n)
    values = {
        "contrast": finding.name, "settings": len(finding.contrast.pairs), "n": paired.n, "sd": paired.sd,
        "interval": "" if math.isnan(low) else f"{fixed(low)} to {fixed(high)}", "sd_low": low, "sd_high": high,
        "detectable": detectable(paired.sd, paired.n, level, wanted), "alpha": level,
        "seeds": seeds_needed(paired.sd, margin, level, wanted),
        "seeds_high": seeds_needed(high, margin, level, wanted),
    }  # fmt: skip
    return Row(values)
