# Token ids are made once per task, model and length, and every run maps them into memory.


rule tokenise:
    input:
        data="resources/tasks/{task}/manifest.json",
        model="resources/models/{model}/manifest.json",
    output:
        "resources/tokens/{task}/{model}-{length}/manifest.json",
    log:
        "logs/tokenise/{task}/{model}-{length}.log",
    conda:
        ENVIRONMENT
    threads: config["threads"]
    resources:
        **needs("tokenise"),
    params:
        code=code_digest("scripts/tokenise.py"),
        data=lambda w, input: str(Path(input.data).parent),
        model=lambda w, input: str(Path(input.model).parent),
        out=parent,
    message:
        "tokenise {wildcards.task} for {wildcards.model}, at most {wildcards.length} tokens"
    shell:
        'python "$LORAUDIT"/scripts/tokenise.py --data {params.data:q} --model {params.model:q}'
        " --max-length {wildcards.length} --out {params.out:q} > {log:q} 2>&1"
