"""The engine: exact states, the recurrence over them, and the tape that runs it backwards."""

from revformers.engine.vector_math import resolve_vector_math

resolve_vector_math()
