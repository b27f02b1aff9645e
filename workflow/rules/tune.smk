"""Hyper-parameter search: a matrix that sweeps parameters on held-out training images, and the choice."""

# Only a search has a choice to make; see sparcl/search.py.
if MATRIX.get("stream_options", {}).get("validation"):

    rule tune:
        """The best values of the swept parameters, with the evidence, for `hyperparameters:` in another matrix."""
        input:
            records,
        output:
            report(
                f"{RESULTS}/chosen.yaml",
                caption="../report/tune.rst",
                category="Search",
                labels={"file": "choice"},
            ),
        log:
            f"{RESULTS}/logs/tune.txt",
        conda:
            "../../environment.yml"
        params:
            plan=f"{RESULTS}/plan.json",
            content=PLAN_DIGEST,
        shell:
            "python -m sparcl.search --plan {params.plan:q} --out {output:q} > {log:q} 2>&1"
