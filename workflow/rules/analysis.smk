"""Tables, figures and the report, from the plan and the records."""


rule tables:
    """Every table as CSV, Markdown and LaTeX; what is missing is listed under it."""
    input:
        plan=rules.plan.output,
        records=records,
    output:
        report(
            directory(f"{RESULTS}/tables"),
            patterns=["{table}.csv"],
            caption="../report/tables.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
    log:
        f"{RESULTS}/logs/tables.txt",
    conda:
        "../../environment.yml"
    shell:
        "python -m analysis tables --plan {input.plan:q} --out {output:q} > {log:q} 2>&1"


rule figures:
    """Every figure as PNG, SVG and PDF."""
    input:
        plan=rules.plan.output,
        records=records,
    output:
        report(
            directory(f"{RESULTS}/figures"),
            patterns=["{figure}.svg"],
            caption="../report/figures.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
    log:
        f"{RESULTS}/logs/figures.txt",
    conda:
        "../../environment.yml"
    shell:
        "python -m analysis figures --plan {input.plan:q} --out {output:q} > {log:q} 2>&1"


rule report:
    """One self-contained HTML file with all tables and figures."""
    input:
        plan=rules.plan.output,
        records=records,
    output:
        report(
            f"{RESULTS}/report.html",
            caption="../report/report.rst",
            category="Report",
            labels={"file": "report"},
        ),
    log:
        f"{RESULTS}/logs/report.txt",
    conda:
        "../../environment.yml"
    shell:
        "python -m analysis report --plan {input.plan:q} --out {output:q} > {log:q} 2>&1"
