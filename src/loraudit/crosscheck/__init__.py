"""Our LoRA beside PEFT's and loralib's, on whole models and on single layers."""
