# Section 7 of the paper: what the updates of the saved in-house adapters look like, and
# what full fine-tuning changed where its weights were kept.


rule subspace:
    input:
        study=f"{RESULTS}/study.json",
        records=[f"{RESULTS}/runs/{run.id}/record.json" for run in MEASURED_RUNS],
        models=sorted(
            {f"resources/models/{run.spec.model.name}/manifest.json" for run in MEASURED_RUNS}
        ),
    output:
        [f"{RESULTS}/tidy/{name}.csv" for name in SECTION7],
        [f"{RESULTS}/tidy/{name}.parquet" for name in SECTION7],
    log:
        f"logs/{STUDY.name}/subspace.log",
    conda:
        ENVIRONMENT
    threads: config["threads"]
    resources:
        **needs("subspace"),
    params:
        code=code_digest("scripts/subspace.py"),
        results=lambda w, input: str(Path(input.study).parent),
        models=from_results("resources", "models"),
    message:
        "measure the updates"
    shell:
        'python "$LORAUDIT"/scripts/start.py'
        ' "$LORAUDIT"/scripts/subspace.py --results {params.results:q}'
        " --models {params.models:q}"
        " > {log:q} 2>&1"
