# loraudit: from a study file to tables, figures and a report. The includes below are in the order
# of the science. Each file in workflow/rules holds one stage, each rule calls one program in
# scripts/.
from snakemake.utils import min_version

min_version("9.0")


configfile: "config/config.yaml"


include: "workflow/rules/common.smk"


# The report needs the runs and cross-checks anyway. They are listed because Snakemake makes a
# deleted file again only if it is asked for, not if all that was made from it is still there.
rule all:
    default_target: True
    input:
        [f"{RESULTS}/runs/{run}/record.json" for run in RUNS],
        [f"{RESULTS}/crosscheck/{cell}.json" for cell in CELLS],
        f"{RESULTS}/report.html",
        [f"{RESULTS}/tables/{name}.md" for name in STUDY_TABLES],
        [f"{FIGURES}/{name}.svg" for name in FIGURES_WANTED],
        "results/published/verdicts.md",


include: "workflow/rules/fetch.smk"
include: "workflow/rules/tokenise.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/crosscheck.smk"
include: "workflow/rules/analyse.smk"
include: "workflow/rules/subspace.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/published.smk"
