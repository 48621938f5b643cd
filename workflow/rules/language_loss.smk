# What each run has done to its base as a language model: the loss on held-out text, before and after. A
# job reads saved adapters or weights and trains nothing, so an edit here retrains nothing.


rule language_loss:
    input:
        records=lambda w: [f"{RESULTS}/runs/{run}/record.json" for run in chain_runs(w)],
        tokens=lambda w: [tokens_of(RUNS[run]) for run in chain_runs(w)],
        model="resources/models/{model}/manifest.json",
    output:
        f"{RESULTS}/language_loss/{{task}}/{{model}}/{{variant}}/s{{seed}}.csv",
    log:
        f"logs/{STUDY.name}/language_loss/{{task}}/{{model}}/{{variant}}-s{{seed}}.log",
    conda:
        ENVIRONMENT
    threads: config["threads"]
    resources:
        **needs("language_loss"),
    params:
        code=code_digest("scripts/language_loss.py"),
        run="{task}/{model}/{variant}/s{seed}",
        chain=lambda w: chain_runs(w),
        runs=lambda w, input: str(Path(input.records[0]).parents[4]),
        tokens=lambda w, input: [str(Path(path).parent) for path in input.tokens],
        model=lambda w, input: str(Path(input.model).parent),
        rows=STUDY.language_loss,
    message:
        "read as a language model {wildcards.task} {wildcards.model} {wildcards.variant} seed {wildcards.seed}"
    shell:
        'python "$LORAUDIT"/scripts/start.py'
        ' "$LORAUDIT"/scripts/language_loss.py --run {params.run:q} --runs {params.runs:q}'
        " --chain {params.chain:q} --tokens {params.tokens:q} --model {params.model:q}"
        " --rows {params.rows:q} --out {output:q} > {log:q} 2>&1"
