"""PAFT: parallel SFT and preference alignment as LoRA adapters, merged and compared."""

__version__ = "0.1.0"
