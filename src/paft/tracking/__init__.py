"""Weights & Biases while branches train."""
