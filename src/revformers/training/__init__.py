"""Pretraining and fine-tuning with transformers' Trainer, as a recipe describes them."""
