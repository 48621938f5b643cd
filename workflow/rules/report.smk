# One page per study, readable from disk.


localrules:
    report,


rule report:
    input:
        study=f"{RESULTS}/study.json",
        runs=f"{RESULTS}/tidy/runs.parquet",
        updates=[f"{RESULTS}/tidy/amplification.parquet"] if LORA_RUNS else [],
        tables=[f"{RESULTS}/tables/{name}.csv" for name in TABLES],
        figures=[f"{FIGURES}/{name}.png" for name in FIGURE_TABLES],
        data=[f"resources/tasks/{task}/manifest.json" for task in TASKS],
        template="src/loraudit/report.html.jinja",
        captions=sorted(Path("workflow/report").glob("*.rst")),
    output:
        report(f"{RESULTS}/report.html", "../report/report.rst", category="Report"),
    log:
        f"logs/{STUDY.name}/report.log",
    conda:
        ENVIRONMENT
    params:
        code=code_digest("scripts/report.py"),
        results=lambda w, input: str(Path(input.study).parent),
    message:
        "write the report"
    shell:
        "python scripts/report.py --results {params.results:q} --figures {input.figures:q}"
        " --data {input.data:q} --out {output:q} > {log:q} 2>&1"
