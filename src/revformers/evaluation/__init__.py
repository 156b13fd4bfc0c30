"""Standard tasks of EleutherAI's lm-evaluation-harness, and two models on the same documents side by side."""

from revformers.evaluation.comparison import Difference, compare
from revformers.evaluation.harness import evaluate
from revformers.evaluation.scores import Evaluation, Score

__all__ = ["Difference", "Evaluation", "Score", "compare", "evaluate"]
