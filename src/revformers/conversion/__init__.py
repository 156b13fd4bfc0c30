"""Conversion of pretrained models to reversible ones with little loss: blends from a bit budget, and predictors."""
