# loraudit: from a study file to tables, figures and a report. The order below is the order of the
# science; each file in workflow/rules holds one stage, each rule calls one program in scripts/.
from snakemake.utils import min_version

min_version("9.0")


configfile: "config/config.yaml"


include: "workflow/rules/common.smk"


rule all:
    default_target: True
    input:
        f"{RESULTS}/report.html",
        f"{RESULTS}/tables/summary.md",
        [f"{FIGURES}/{name}.svg" for name in FIGURE_TABLES],


include: "workflow/rules/fetch.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/crosscheck.smk"
include: "workflow/rules/analyse.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/report.smk"
