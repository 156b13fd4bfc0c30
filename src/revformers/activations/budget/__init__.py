"""The policy with a memory budget: store what fits into it, and recompute the rest."""
