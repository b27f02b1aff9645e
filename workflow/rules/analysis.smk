"""Tables, figures and the report, from the plan and the records."""


# Snakemake removes the outputs of a job before it starts the job. So the records are read in a job of their own: when
# one of them is refused, what makes tables, figures and report is not started, and the old ones stay.
# These jobs have the records as input too: without a check that passed, Snakemake would else find nothing to do.
rule check:
    """Read every record; one that is damaged or not the planned one stops the analysis here."""
    input:
        records,
    output:
        f"{RESULTS}/logs/checked.txt",
    log:
        f"{RESULTS}/logs/check.txt",
    conda:
        "../../environment.yml"
    params:
        script=CHECK,
        plan=f"{RESULTS}/plan.json",
        content=PLAN_DIGEST,
    shell:
        "python {params.script:q} --plan {params.plan:q} --out {output:q} > {log:q} 2>&1"


rule tables:
    """Every table as CSV, Markdown and LaTeX; what is missing is listed under it."""
    input:
        records,
        rules.check.output,
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
    params:
        plan=f"{RESULTS}/plan.json",
        content=PLAN_DIGEST,
    shell:
        "python -m analysis tables --plan {params.plan:q} --out {output:q} > {log:q} 2>&1"


rule figures:
    """Every figure as PNG, SVG and PDF."""
    input:
        records,
        rules.check.output,
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
    params:
        plan=f"{RESULTS}/plan.json",
        content=PLAN_DIGEST,
    shell:
        "python -m analysis figures --plan {params.plan:q} --out {output:q} > {log:q} 2>&1"


rule report:
    """One self-contained HTML file with all tables and figures, and where everything comes from."""
    input:
        records,
        rules.check.output,
    output:
        html=report(
            f"{RESULTS}/report.html",
            caption="../report/report.rst",
            category="Report",
            labels={"file": "report"},
        ),
        provenance=f"{RESULTS}/provenance.json",
    log:
        f"{RESULTS}/logs/report.txt",
    conda:
        "../../environment.yml"
    params:
        plan=f"{RESULTS}/plan.json",
        content=PLAN_DIGEST,
    shell:
        "python -m analysis report --plan {params.plan:q} --out {output.html:q} > {log:q} 2>&1"
