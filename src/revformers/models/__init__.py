"""Hugging Face models: finding their layers, their fields, swapping the recurrence, saving and loading."""
