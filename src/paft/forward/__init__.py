"""Rows through the model: end to end, padded, or sharing what they begin with."""
