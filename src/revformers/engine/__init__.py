"""Exact states: fixed-point numbers, the affine step and its inverse, packed side information."""

from revformers.engine.vector_math import resolve_vector_math

resolve_vector_math()
