"""Transformers models: how their layers are found and evaluated, and how a reversible recurrence replaces theirs."""
