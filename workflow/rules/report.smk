# One page per study, which a browser reads from disk.


localrules:
    report,
    partial,


rule report:
    input:
        study=f"{RESULTS}/study.json",
        runs=f"{RESULTS}/tidy/runs.parquet",
        updates=[f"{RESULTS}/tidy/amplification.parquet"] if LORA_RUNS else [],
        tables=[f"{RESULTS}/tables/{name}.csv" for name in STUDY_TABLES],
        figures=[f"{FIGURES}/{name}.svg" for name in FIGURES_WANTED],
        csv=[f"{FIGURES}/{name}.csv" for name in FIGURES_WANTED],
        data=[f"resources/tasks/{task}/manifest.json" for task in TASKS],
        shipped=[given(path) for path in shipped_files(STUDY.name)],
        protocols=[given(path) for path in own_and_shipped("config/protocols")],
        template=given(shipped("src/loraudit/report/report.html.jinja")),
        methods=given(shipped("src/loraudit/studies/methods.yaml")),
        captions=[given(path) for path in sorted(shipped("workflow/report").glob("*.rst"))],
    output:
        report(f"{RESULTS}/report.html", "../report/report.rst", category="Report"),
    log:
        f"logs/{STUDY.name}/report.log",
    conda:
        ENVIRONMENT
    params:
        code=code_digest("scripts/report.py", *figure_modules(STUDY), *table_modules(TABLES)),
        results=lambda w, input: str(Path(input.study).parent),
        switches=lambda w: SWITCHES,  # in a function: braces are then plain text
    message:
        "write the report"
    shell:
        'python "$LORAUDIT"/scripts/start.py'
        ' "$LORAUDIT"/scripts/report.py'
        " --results {params.results:q} --figures {input.figures:q}"
        " --data {input.data:q} --switches {params.switches:q} > {log:q} 2>&1"


# A report on what an unfinished study has so far, after jobs have failed or while others run. The rule
# has no output and no runs as input: it runs whenever it is called by name, and waits for no run.
rule partial:
    input:
        study=f"{RESULTS}/study.json",
    log:
        f"logs/{STUDY.name}/partial.log",
    conda:
        ENVIRONMENT
    params:
        code=code_digest("scripts/partial.py", *figure_modules(STUDY), *table_modules(TABLES)),
        results=lambda w, input: str(Path(input.study).parent),
        logs=from_results("logs", STUDY.name),
        data=from_results("resources", "tasks"),
        switches=lambda w: SWITCHES,  # in a function: braces are then plain text
    message:
        "report on the runs that are there: {params.results}/partial/report.html"
    shell:
        'python "$LORAUDIT"/scripts/partial.py --results {params.results:q} --logs {params.logs:q}'
        " --data {params.data:q} --switches {params.switches:q} 2>&1 | tee {log:q}"
