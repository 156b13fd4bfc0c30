"""Prediction of the memory that training takes, from a model's configuration alone."""
