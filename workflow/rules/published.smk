# Published numbers compared with each other; no run is needed for that.


localrules:
    published,


rule published:
    input:
        numbers=given(own_or_shipped("config/published.yaml")),
        references=[given(path) for path in own_and_shipped("config/reference")],
        protocols=[given(path) for path in own_and_shipped("config/protocols")],
        style=given(shipped("src/loraudit/report/loraudit.mplstyle")),
        template=given(shipped("src/loraudit/report/report.html.jinja")),
        caption=given(shipped("workflow/report/published.rst")),
    output:
        csv="results/published/verdicts.csv",
        markdown=report(
            "results/published/verdicts.md", "../report/published.rst", category="Published"
        ),
        svg=report(
            "figures/published/verdicts.svg", "../report/published.rst", category="Published"
        ),
        png="figures/published/verdicts.png",
        figure_csv="figures/published/verdicts.csv",
        page=report(
            "results/published/report.html", "../report/published.rst", category="Published"
        ),
    log:
        "logs/published.log",
    conda:
        ENVIRONMENT
    params:
        code=code_digest("scripts/published.py"),
    message:
        "compare published numbers"
    shell:
        'python "$LORAUDIT"/scripts/published.py --numbers {input.numbers:q} --csv {output.csv:q}'
        " --markdown {output.markdown:q} --svg {output.svg:q} --page {output.page:q} > {log:q} 2>&1"
