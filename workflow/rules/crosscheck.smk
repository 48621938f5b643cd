# Our LoRA beside PEFT's, for every task x model x rank x target set: a job that fails where they
# differ by more than the tolerance.


rule crosscheck:
    input:
        data="resources/tasks/{task}/manifest.json",
        model="resources/models/{model}/manifest.json",
    output:
        f"{RESULTS}/crosscheck/{{task}}/{{model}}/{{variant}}.json",
    log:
        f"logs/{STUDY.name}/crosscheck/{{task}}/{{model}}/{{variant}}.log",
    conda:
        ENVIRONMENT
    threads: config["threads"]
    params:
        code=code_digest("scripts/crosscheck.py"),
        spec=lambda w: cell_spec(w).model_dump_json(),
        data=lambda w, input: str(Path(input.data).parent),
        model=lambda w, input: str(Path(input.model).parent),
    message:
        "cross-check {wildcards.task} {wildcards.model} {wildcards.variant}"
    shell:
        "python scripts/crosscheck.py --spec {params.spec:q} --data {params.data:q}"
        " --model {params.model:q} --out {output:q} > {log:q} 2>&1"
