"""Hyper-parameter search: a matrix that sweeps parameters on held-out training images, and the choice."""

# Only a search has a choice to make; see docs/tuning.md.
if MATRIX.get("stream_options", {}).get("validation"):

    rule tune:
        """The best values of the swept parameters, with the evidence, for `hyperparameters:` in another matrix."""
        input:
            records,
            rules.check.output,
        output:
            report(
                f"{RESULTS}/tuned.yaml",
                caption="../report/tune.rst",
                category="Search",
                labels={"file": "choice"},
            ),
            report(
                f"{RESULTS}/tuning.csv",
                caption="../report/tune.rst",
                category="Search",
                labels={"file": "all points"},
            ),
            f"{RESULTS}/tuning.md",
        log:
            f"{RESULTS}/logs/tune.txt",
        conda:
            "../../environment.yml"
        params:
            plan=f"{RESULTS}/plan.json",
            content=PLAN_DIGEST,
            folder=RESULTS,
        shell:
            "python -m analysis tune --plan {params.plan:q} --out {params.folder:q} > {log:q} 2>&1"
