"""Pretrained models made reversible with little loss: blends from a bit budget, and the update predictor."""
