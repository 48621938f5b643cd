# From run records to tidy tables to a summary over seeds.


localrules:
    study,
    collect,
    tables,


rule study:
    output:
        f"{RESULTS}/study.json",
    log:
        f"logs/{STUDY.name}/study.log",
    conda:
        ENVIRONMENT
    params:
        code=code_digest("scripts/study.py"),
        study=digest(STUDY),
        config=lambda w: json.dumps(CHOICES),  # in a function, because braces are then plain text
    message:
        "expand the study"
    shell:
        'python "$LORAUDIT"/scripts/study.py --config {params.config:q}'
        " --out {output:q} > {log:q} 2>&1"


rule collect:
    input:
        study=f"{RESULTS}/study.json",
        records=[f"{RESULTS}/runs/{run}/record.json" for run in RUNS],
        history=[f"{RESULTS}/runs/{run}/history.csv" for run in REPORTED],
        predictions=[f"{RESULTS}/runs/{run}/predictions.parquet" for run in REPORTED],
        crosschecks=[f"{RESULTS}/crosscheck/{cell}.json" for cell in CELLS],
        forgetting=[f"{RESULTS}/forgetting/{run}.csv" for run in WARM_RUNS],
        language=[f"{RESULTS}/language_loss/{run}.csv" for run in LANGUAGE_RUNS],
    output:
        [f"{RESULTS}/tidy/{name}.csv" for name in TIDY],
        [f"{RESULTS}/tidy/{name}.parquet" for name in TIDY],
        f"{RESULTS}/tidy/records.jsonl",
    log:
        f"logs/{STUDY.name}/collect.log",
    conda:
        ENVIRONMENT
    params:
        code=code_digest("scripts/collect.py"),
        results=lambda w, input: str(Path(input.study).parent),
    message:
        "collect the runs"
    shell:
        'python "$LORAUDIT"/scripts/start.py'
        ' "$LORAUDIT"/scripts/collect.py --results {params.results:q} > {log:q} 2>&1'


rule tables:
    input:
        study=f"{RESULTS}/study.json",
        tidy=[f"{RESULTS}/tidy/{name}.parquet" for name in read_by_tables()],
        references=[given(path) for path in own_and_shipped("config/reference")],
        protocols=[given(path) for path in own_and_shipped("config/protocols")],
        methods=given(shipped("src/loraudit/studies/methods.yaml")),
    output:
        [f"{RESULTS}/tables/{name}.csv" for name in EARLY_TABLES],
        [
            report(f"{RESULTS}/tables/{name}.md", f"../report/{name}.rst", category="Tables")
            for name in EARLY_TABLES
        ],
    log:
        f"logs/{STUDY.name}/tables.log",
    conda:
        ENVIRONMENT
    params:
        code=code_digest("scripts/tables.py", *table_modules(EARLY_TABLES)),
        results=lambda w, input: str(Path(input.study).parent),
    message:
        "aggregate over seeds"
    shell:
        'python "$LORAUDIT"/scripts/start.py'
        ' "$LORAUDIT"/scripts/tables.py --results {params.results:q} > {log:q} 2>&1'
