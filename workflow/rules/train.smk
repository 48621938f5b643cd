# One job per run. How it is launched (devices, processes) is a resource and not a parameter, so that
# moving a study to another machine reruns nothing.


rule train:
    input:
        tokens=lambda w: tokens_of(run_spec(w)),
        model="resources/models/{model}/manifest.json",
        start=start_record,
        trials=trial_records,
    output:
        record=f"{RESULTS}/runs/{{task}}/{{model}}/{{variant}}/s{{seed}}/record.json",
        spec=f"{RESULTS}/runs/{{task}}/{{model}}/{{variant}}/s{{seed}}/spec.json",
        history=f"{RESULTS}/runs/{{task}}/{{model}}/{{variant}}/s{{seed}}/history.csv",
        predictions=f"{RESULTS}/runs/{{task}}/{{model}}/{{variant}}/s{{seed}}/predictions.parquet",
    log:
        f"logs/{STUDY.name}/train/{{task}}/{{model}}/{{variant}}-s{{seed}}.log",
    conda:
        ENVIRONMENT
    threads: config["threads"] * PROCESSES
    resources:
        **node_request(LAUNCHER),
        **needs("train"),
        launch=str(LAUNCH),
        runs_per_gpu=config["runs_per_gpu"],
        threads_per_process=config["threads"],
        checkpoint=f"--checkpoint-minutes={config['checkpoint_minutes']:g}",
    params:
        code=lambda w: training_code(run_spec(w).method),
        spec=lambda w: run_spec(w).model_dump_json(),
        tokens=lambda w, input: str(Path(input.tokens).parent),
        model=lambda w, input: str(Path(input.model).parent),
        start=lambda w, input: f"--start={Path(input.start).parent}" if input.get("start") else "",
        trials=lambda w, input: (
            f"--trials={Path(input.trials[0]).parents[4]}" if input.get("trials") else ""
        ),
        out=parent,
    message:
        "train {wildcards.task} {wildcards.model} {wildcards.variant} seed {wildcards.seed}"
    shell:
        "LORAUDIT_RUNS_PER_GPU={resources.runs_per_gpu}"
        ' python "$LORAUDIT"/scripts/start.py'
        ' "$LORAUDIT"/scripts/launch.py --quiet --config_file {resources.launch:q}'
        " --num_cpu_threads_per_process {resources.threads_per_process}"
        ' "$LORAUDIT"/scripts/train.py --spec {params.spec:q}'
        " --tokens {params.tokens:q} --model {params.model:q}"
        " --out {params.out:q} --code {params.code} {params.start:q} {params.trials:q}"
        " {resources.checkpoint} > {log:q} 2>&1"
