"""Storing what a number of bytes has room for, and recomputing the rest."""
