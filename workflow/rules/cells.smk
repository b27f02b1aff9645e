"""One job per cell."""

# In a partial run the records are what they are, and nothing may run to make more of them.
if not PARTIAL:

    rule cell:
        """Train and evaluate one cell. An interrupted run continues from the checkpoint beside its record."""
        output:
            f"{RESULTS}/runs/{{cell}}/record.json",
        log:
            f"{RESULTS}/runs/{{cell}}/log.txt",
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            gpu=gpus,
        params:
            cell=cell_json,
            identity=identity,
            results=results_folder,
        shell:
            "exec python -m sparcl.worker run --cell {params.cell:q} --results {params.results:q}"
            " --threads {threads} > {log:q} 2>&1"


rule cells:
    """All records of the plan, nothing else."""
    input:
        records,
