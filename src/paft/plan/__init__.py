"""`plan=true`: what would run, what is there, and what running it takes; loads no torch and runs nothing."""

from paft.plan.table import show_plan

__all__ = ["show_plan"]
