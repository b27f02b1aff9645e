"""The stream, then one job per cell."""

# In a partial run the records are what they are, and nothing may run to make more of them.
if not PARTIAL:

    localrules:
        data,
        timing,

    rule data:
        """Download and check the stream. Compute nodes often have no network: this runs beside Snakemake itself."""
        output:
            DATA,
        log:
            f"{RESULTS}/logs/data.txt",
        conda:
            "../../environment.yml"
        params:
            stream=PLAN["stream"]["name"],
            options=stream_options,
            files=PLAN["stream"].get("files"),  # of own images: another folder is checked anew
        shell:
            "("
            + launch("sparcl data --stream {params.stream} {params.options:q}")
            + " > {output:q}.part 2> {log:q}) && mv {output:q}.part {output:q}"

    rule cell:
        """Train and evaluate one cell. An interrupted run continues from the checkpoint beside its record."""
        input:
            checked_data,
        # An old record stays until the new one is complete: no mistake in the code costs what was measured.
        output:
            update(f"{RESULTS}/runs/{{cell}}/record.json"),
        log:
            f"{RESULTS}/runs/{{cell}}/log.txt",
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            gpu=gpus,
            runtime=minutes,
            mem_mb=megabytes,
        params:
            # A cell runs again when one of these changes or its record is missing, and for no other reason.
            cell=cell_json,
            identity=identity,
        shell:
            launch(
                "--gpus {resources.gpu} sparcl run --cell {params.cell:q} --identity {params.identity}"
                f" --results {RESULTS} --threads {{threads}} > {{log:q}} 2>&1"
            )

    rule timing:
        """How long steps take on this machine, with one thread and with all; alone, when all cells are done.

        A newer record makes an old measurement no staler: what is timed is no cell's run.
        """
        input:
            ancient(records()),
        output:
            f"{RESULTS}/timing.json",
        log:
            f"{RESULTS}/logs/timing.txt",
        conda:
            "../../environment.yml"
        threads: min(workflow.cores or 2, 256)  # what `sparcl time` takes
        params:
            cells=TIMED,
        shell:
            launch(
                f"sparcl time --plan {PLAN_FILE} --out {{output:q}} --cores {{threads}} > {{log:q}} 2>&1"
            )


rule cells:
    """All records of the plan, nothing else."""
    input:
        records(),
