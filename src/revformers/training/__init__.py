"""Pretraining on transformers' Trainer, described by a recipe."""
