"""Hyper-parameter search: a matrix that sweeps parameters on held-out training images, and the choice."""

# Only a search has a choice to make; see docs/tuning.md.
if MATRIX.get("stream_options", {}).get("validation"):

    rule tune:
        """The best values of the swept parameters, with the evidence, for `hyperparameters:` in another matrix."""
        input:
            rules.results.output,
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
            plan=PLAN_DIGEST,
            code=CODE_DIGEST,
        shell:
            analysis_of("tune")

else:

    rule tune:
        """A matrix that holds no training images out is no search, and says so before it runs any cell."""
        log:
            f"{RESULTS}/logs/tune.txt",
        conda:
            "../../environment.yml"
        params:
            problem="stream_options.validation: missing, a search holds training images out",
        shell:
            "echo error: {params.problem:q} > {log:q}; exit 2"
