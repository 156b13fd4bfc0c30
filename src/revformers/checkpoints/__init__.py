"""Saving and loading reversible models."""
