"""LoRA on a model: the layers, PEFT's twin, adapter folders, quantised bases."""
