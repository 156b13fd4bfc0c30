"""Exact states: fixed-point numbers, the affine step and its inverse, packed side information."""
