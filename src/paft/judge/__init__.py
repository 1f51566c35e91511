"""Judged answers: files of outputs and annotations, who is asked, and the figures of AlpacaEval 2."""
