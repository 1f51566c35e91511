"""Layers of a frozen base and its LoRA as single autograd nodes: same results as peft and transformers, less work."""
