# One job per pack of runs, whose rows share each batch (`runs_per_batch`); without it there is none.
# Its outputs have no wildcards, so that Snakemake prefers it to the rule that trains one run.


for number, pack in enumerate(PACKS):

    rule:
        name:
            f"train_packed_{number}"
        input:
            tokens=tokens_of(pack[0].spec),
            model=f"resources/models/{pack[0].spec.model.name}/manifest.json",
            trials=trials_of_pack(pack),
        output:
            record=[f"{RESULTS}/runs/{run.id}/record.json" for run in pack],
            spec=[f"{RESULTS}/runs/{run.id}/spec.json" for run in pack],
            history=[f"{RESULTS}/runs/{run.id}/history.csv" for run in pack],
            predictions=[f"{RESULTS}/runs/{run.id}/predictions.parquet" for run in pack],
        log:
            [str(training_log(Path(f"logs/{STUDY.name}"), run.id)) for run in pack],
        conda:
            ENVIRONMENT
        threads: config["threads"]
        resources:
            **node_request(LAUNCHER),
            **pack_needs(pack),
            launch=str(LAUNCH),
            runs_per_gpu=config["runs_per_gpu"],
            threads_per_process=config["threads"],
            checkpoint=f"--checkpoint-minutes={config['checkpoint_minutes']:g}",
        params:
            code=packed_code(),
            spec=[run.spec.model_dump_json() for run in pack],
            tokens=lambda w, input: str(Path(input.tokens).parent),
            model=lambda w, input: str(Path(input.model).parent),
            trials=lambda w, input: (
                f"--trials={Path(input.trials[0]).parents[4]}" if input.get("trials") else ""
            ),
            out=lambda w, output: [str(Path(path).parent) for path in output.record],
        message:
            f"train {len(pack)} runs of {pack[0].spec.task.name} {pack[0].spec.model.name} together"
        # one log under each run's name, as links to one file
        shell:
            ": > {log[0]:q};"
            ' for log in {log:q}; do ln -f {log[0]:q} "$log" 2> /dev/null || :; done;'
            " LORAUDIT_RUNS_PER_GPU={resources.runs_per_gpu}"
            ' python "$LORAUDIT"/scripts/start.py'
            ' "$LORAUDIT"/scripts/launch.py --quiet --config_file {resources.launch:q}'
            " --num_cpu_threads_per_process {resources.threads_per_process}"
            ' "$LORAUDIT"/scripts/train_packed.py --spec {params.spec:q}'
            " --tokens {params.tokens:q} --model {params.model:q}"
            " --out {params.out:q} --code {params.code} {params.trials:q}"
            " {resources.checkpoint} >> {log[0]:q} 2>&1"
