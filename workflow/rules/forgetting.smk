# What each run of a chain of tasks has forgotten: the tasks before it, scored with their own heads. A
# job reads saved adapters and trains nothing, so an edit here retrains nothing.


rule forgetting:
    input:
        record=f"{RESULTS}/runs/{{task}}/{{model}}/{{variant}}/s{{seed}}/record.json",
        earlier=lambda w: [f"{RESULTS}/runs/{run}/record.json" for run in earlier_runs(w)],
        tokens=lambda w: [tokens_of(RUNS[run]) for run in earlier_runs(w)],
        model="resources/models/{model}/manifest.json",
    output:
        f"{RESULTS}/forgetting/{{task}}/{{model}}/{{variant}}/s{{seed}}.csv",
    log:
        f"logs/{STUDY.name}/forgetting/{{task}}/{{model}}/{{variant}}-s{{seed}}.log",
    conda:
        ENVIRONMENT
    threads: config["threads"]
    resources:
        **needs("forgetting"),
    params:
        code=code_digest("scripts/forgetting.py"),
        run="{task}/{model}/{variant}/s{seed}",
        earlier=lambda w: earlier_runs(w),
        runs=lambda w, input: str(Path(input.record).parents[4]),
        tokens=lambda w, input: [str(Path(path).parent) for path in input.tokens],
        model=lambda w, input: str(Path(input.model).parent),
    message:
        "score the tasks before {wildcards.task} {wildcards.model} {wildcards.variant} seed {wildcards.seed}"
    shell:
        'python "$LORAUDIT"/scripts/start.py'
        ' "$LORAUDIT"/scripts/forgetting.py --run {params.run:q} --runs {params.runs:q}'
        " --earlier {params.earlier:q} --tokens {params.tokens:q} --model {params.model:q}"
        " --out {output:q} > {log:q} 2>&1"
