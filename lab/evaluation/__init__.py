"""Evaluation on standard tasks of EleutherAI's lm-evaluation-harness, and of two models on the same documents."""

from lab.evaluation.comparison import Comparison, Difference, MeanDifference, compare
from lab.evaluation.harness import evaluate
from lab.evaluation.mean_accuracy import MeanAccuracy
from lab.evaluation.scores import Evaluation, Score

__all__ = ["Comparison", "Difference", "Evaluation", "MeanAccuracy", "MeanDifference", "Score", "compare", "evaluate"]
