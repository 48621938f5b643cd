# Our LoRA beside PEFT's, for every task x model x rank x target set. A job fails if they differ by
# more than the tolerance.


rule crosscheck:
    input:
        tokens=lambda w: tokens_of(cell_spec(w)),
        model="resources/models/{model}/manifest.json",
    output:
        f"{RESULTS}/crosscheck/{{task}}/{{model}}/{{variant}}.json",
    log:
        f"logs/{STUDY.name}/crosscheck/{{task}}/{{model}}/{{variant}}.log",
    conda:
        ENVIRONMENT
    threads: config["threads"]
    resources:
        **needs("crosscheck"),
    params:
        code=code_digest("scripts/crosscheck.py"),
        spec=lambda w: cell_spec(w).model_dump_json(),
        tokens=lambda w, input: str(Path(input.tokens).parent),
        model=lambda w, input: str(Path(input.model).parent),
    message:
        "cross-check {wildcards.task} {wildcards.model} {wildcards.variant}"
    shell:
        'python "$LORAUDIT"/scripts/start.py'
        ' "$LORAUDIT"/scripts/crosscheck.py --spec {params.spec:q} --tokens {params.tokens:q}'
        " --model {params.model:q} --out {output:q} > {log:q} 2>&1"
