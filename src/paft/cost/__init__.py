"""What a training asks of a machine: FLOP, bytes, tokens. Loads no torch."""
