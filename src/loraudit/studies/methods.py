"""The methods that a run can train by, and the module that carries each of them out."""

METHOD_MODULES = {
    "lora": "loraudit.adapters.inject",
    "peft": "loraudit.adapters.peft_twin",
    "alora": "loraudit.training.alora",
    "adalora": "loraudit.training.adalora",
    "full": "loraudit.training.baselines",
    "bitfit": "loraudit.training.baselines",
    "head": "loraudit.training.baselines",
}
"""Method name -> the module whose `apply` and `export` carry it out."""


LORA_METHODS = ("lora", "peft")
"""The two implementations of plain LoRA."""


ADAPTER_METHODS = (*LORA_METHODS, "alora", "adalora")
"""Methods that train LoRA matrices; the last two move ranks between layers."""
