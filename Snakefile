"""Entry at the top of the repository: `snakemake` here does what workflow/Snakefile says."""


include: "workflow/Snakefile"


rule default:
    default_target: True
    input:
        rules.all.input,
