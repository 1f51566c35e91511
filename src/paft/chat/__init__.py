"""Conversations as tokens: templates, what is learnt, what goes beside a model that speaks by them."""
