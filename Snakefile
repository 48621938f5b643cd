# So that `snakemake` finds the workflow in this folder without being told; the workflow itself is
# workflow/Snakefile.


include: "workflow/Snakefile"


# Snakemake takes no default target from an included file.
rule default:
    input:
        rules.all.input,
