# Every figure, as SVG and PNG, and the CSV behind it. One job draws them all: most of a figure's time
# is the start of the program that draws it.


localrules:
    figures,


rule figures:
    input:
        study=f"{RESULTS}/study.json",
        tables=sorted(
            {f"{RESULTS}/{table}" for figure in FIGURES_WANTED.values() for table in figure.tables}
        ),
        style=given(shipped("src/loraudit/report/loraudit.mplstyle")),
        methods=given(shipped("src/loraudit/studies/methods.yaml")),
    output:
        [
            report(f"{FIGURES}/{name}.svg", f"../report/{name}.rst", category="Figures")
            for name in FIGURES_WANTED
        ],
        [f"{FIGURES}/{name}.{suffix}" for name in FIGURES_WANTED for suffix in ("png", "csv")],
    log:
        f"logs/{STUDY.name}/figures.log",
    conda:
        ENVIRONMENT
    params:
        code=code_digest("scripts/figures.py", *figure_modules(STUDY)),
        results=lambda w, input: str(Path(input.study).parent),
        figures=parent,
    message:
        "draw the figures"
    shell:
        'python "$LORAUDIT"/scripts/start.py'
        ' "$LORAUDIT"/scripts/figures.py --results {params.results:q}'
        " --figures {params.figures:q}"
        " > {log:q} 2>&1"
