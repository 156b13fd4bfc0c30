"""Standard tasks of EleutherAI's lm-evaluation-harness, and two models on the same documents side by side."""

from revformers.evaluation.comparison import Comparison, Difference, MeanDifference, compare
from revformers.evaluation.harness import evaluate
from revformers.evaluation.mean_accuracy import MeanAccuracy
from revformers.evaluation.scores import Evaluation, Score

__all__ = ["Comparison", "Difference", "Evaluation", "MeanAccuracy", "MeanDifference", "Score", "compare", "evaluate"]
