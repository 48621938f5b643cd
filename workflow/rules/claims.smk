# Verdicts on the claims of papers, from the runs and, where there are adapters of ours, section 7.


localrules:
    claims,


rule claims:
    input:
        study=f"{RESULTS}/study.json",
        tidy=[f"{RESULTS}/tidy/{name}.parquet" for name in READ_LATE],
        updates=[f"{RESULTS}/tidy/{name}.parquet" for name in SECTION7 if LORA_RUNS],
        claims=[given(path) for path in own_and_shipped("config/claims")],
        references=[given(path) for path in own_and_shipped("config/reference")],
        protocols=[given(path) for path in own_and_shipped("config/protocols")],
        methods=given(shipped("src/loraudit/studies/methods.yaml")),
    output:
        [f"{RESULTS}/tables/{name}.csv" for name in LATE_TABLES],
        [
            report(f"{RESULTS}/tables/{name}.md", f"../report/{name}.rst", category="Tables")
            for name in LATE_TABLES
        ],
    log:
        f"logs/{STUDY.name}/claims.log",
    conda:
        ENVIRONMENT
    params:
        code=code_digest("scripts/claims.py", *table_modules(LATE_TABLES)),
        results=lambda w, input: str(Path(input.study).parent),
    message:
        "test the claims"
    shell:
        'python "$LORAUDIT"/scripts/claims.py --results {params.results:q} > {log:q} 2>&1'
