# Every figure, as SVG and PNG, and the CSV behind it.


localrules:
    figure,


rule figure:
    input:
        tables=lambda w: [f"{RESULTS}/{table}" for table in FIGURE_TABLES[w.figure]],
        style="src/loraudit/report/loraudit.mplstyle",
    output:
        svg=report(f"{FIGURES}/{{figure}}.svg", "../report/figure.rst", category="Figures"),
        png=f"{FIGURES}/{{figure}}.png",
        csv=f"{FIGURES}/{{figure}}.csv",
    log:
        f"logs/{STUDY.name}/figure-{{figure}}.log",
    conda:
        ENVIRONMENT
    params:
        code=code_digest("scripts/figures.py"),
        caption=lambda w: Path(f"workflow/report/{w.figure}.rst").read_text().strip(),
    message:
        "draw {wildcards.figure}"
    shell:
        "python scripts/figures.py --figure {wildcards.figure} --tables {input.tables:q}"
        " --svg {output.svg:q} > {log:q} 2>&1"
