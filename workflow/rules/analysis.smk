"""One tidy table of all records; from it every table and figure, each a target of its own; and the report."""


# Snakemake removes the outputs of a job when it starts the job. So the tidy table is made in a folder of its own, and
# put in its place once every record could be used: when one is refused, old tables, figures and report stay. What makes
# the first job stale makes the second stale as well: after a refusal Snakemake would else find nothing to do.
rule collect:
    """Read every record once; one that is damaged or not the planned one stops the analysis here."""
    input:
        records(),
        outdated,
    output:
        f"{RESULTS}/collected/results.csv.gz",
        f"{RESULTS}/collected/provenance.json",
    log:
        f"{RESULTS}/logs/collect.txt",
    conda:
        "../../environment.yml"
    params:
        **COLLECTED,
    shell:
        analysis_of("collect", f"{RESULTS}/collected")


rule results:
    """The tidy table, and where it comes from."""
    input:
        records(),
        collected=rules.collect.output,
    output:
        f"{RESULTS}/results.csv.gz",
        f"{RESULTS}/provenance.json",
    log:
        f"{RESULTS}/logs/results.txt",
    conda:
        "../../environment.yml"
    params:
        **COLLECTED,
    shell:
        "for file in {input.collected:q}; do "
        f'name={RESULTS}/$(basename "$file") && cp "$file" "$name.part" && mv "$name.part" "$name" || exit 1; '
        "done 2> {log:q}"


rule table:
    """One table as CSV, Markdown, LaTeX and HTML; what is missing is listed under it."""
    input:
        rules.results.output,
        measured,
    output:
        report(
            f"{RESULTS}/tables/{{table}}.csv",
            caption="../report/tables.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
        multiext(f"{RESULTS}/tables/{{table}}", ".md", ".tex", ".html"),
    log:
        f"{RESULTS}/logs/table-{{table}}.txt",
    conda:
        "../../environment.yml"
    params:
        plan=PLAN_DIGEST,
        code=CODE_DIGEST,
    shell:
        analysis_of("table {wildcards.table:q}", f"{RESULTS}/tables")


rule figure:
    """One figure as SVG, PNG and PDF, with its caption and what it lacks."""
    input:
        rules.results.output,
        measured,
    output:
        report(
            f"{RESULTS}/figures/{{figure}}.svg",
            caption="../report/figures.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        multiext(f"{RESULTS}/figures/{{figure}}", ".png", ".pdf", ".json"),
    log:
        f"{RESULTS}/logs/figure-{{figure}}.txt",
    conda:
        "../../environment.yml"
    params:
        plan=PLAN_DIGEST,
        code=CODE_DIGEST,
    shell:
        analysis_of("figure {wildcards.figure:q}", f"{RESULTS}/figures")


rule tables:
    """All tables of the plan."""
    input:
        expand(rules.table.output, table=TABLES),


rule figures:
    """All figures of the plan."""
    input:
        expand(rules.figure.output, figure=FIGURES),


rule report:
    """One self-contained HTML file with all tables and figures, and where everything comes from."""
    input:
        rules.results.output,
        rules.tables.input,
        rules.figures.input,
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
    params:
        plan=PLAN_DIGEST,
        code=CODE_DIGEST,
    shell:
        analysis_of("report", "{output:q}")
