# Every figure, as SVG and PNG, and the CSV behind it.


localrules:
    figure,


FIGURE_CODE = {
    name: code_digest("scripts/figures.py", figure.module)
    for name, figure in FIGURES_WANTED.items()
}


rule figure:
    input:
        tables=lambda w: [f"{RESULTS}/{table}" for table in FIGURES_WANTED[w.figure].tables],
        style="src/loraudit/report/loraudit.mplstyle",
        methods="src/loraudit/studies/methods.yaml",
    output:
        svg=report(f"{FIGURES}/{{figure}}.svg", "../report/figure.rst", category="Figures"),
        png=f"{FIGURES}/{{figure}}.png",
        csv=f"{FIGURES}/{{figure}}.csv",
    log:
        f"logs/{STUDY.name}/figure-{{figure}}.log",
    conda:
        ENVIRONMENT
    params:
        code=lambda w: FIGURE_CODE[w.figure],
        results=RESULTS,
        caption=lambda w: Path(f"workflow/report/{w.figure}.rst").read_text().strip(),
    message:
        "draw {wildcards.figure}"
    shell:
        "python scripts/figures.py --figure {wildcards.figure} --results {params.results:q}"
        " --svg {output.svg:q} > {log:q} 2>&1"
