"""Train in one job, evaluate in another.

    metta sweep run examples/train_eval.py

Each run first trains a classifier and saves it in the run's own folder. A second job then loads it and scores it on
data that training never touched; the score that counts is this one. Each kind of job has its own limit on how many run
at a time, so a slow evaluation never holds a place that training could use.
"""

from typing import Any

import joblib
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.model_selection import train_test_split

from metta.sweep import Choice, LogUniform, Range, report_metrics, run_directory, sweep

MODEL_FILE = "model.joblib"
STAGES = 5

features, labels = load_breast_cancer(return_X_y=True)
train_x, test_x, train_y, test_y = train_test_split(features, labels, test_size=0.3, stratify=labels, random_state=0)


def evaluate(config: dict[str, Any]) -> dict[str, float]:
    """Score the model that this run's training left behind."""
    model = joblib.load(run_directory() / MODEL_FILE)
    return {"test_accuracy": float(model.score(test_x, test_y))}


@sweep(
    search_space={
        "lr": LogUniform(0.01, 0.5),
        "tree": {
            "max_depth": Range(1, 5),
            "min_samples_leaf": Choice([1, 5, 20]),
        },
        "trees": Range(50, 200, step=50),
    },
    evaluate=evaluate,
    metric="test_accuracy",
    direction="maximize",
    max_parallel=2,
    max_trials=12,
)
def train(config: dict[str, Any]) -> dict[str, float]:
    """Grow the trees in a few stages, report the fit after each, save the model."""
    model = GradientBoostingClassifier(
        learning_rate=config["lr"],
        max_depth=config["tree"]["max_depth"],
        min_samples_leaf=config["tree"]["min_samples_leaf"],
        warm_start=True,
        random_state=0,
    )
    for stage in range(1, STAGES + 1):
        model.n_estimators = config["trees"] * stage // STAGES
        model.fit(train_x, train_y)
        report_metrics({"train_accuracy": float(model.score(train_x, train_y)), "trees_grown": model.n_estimators})
    joblib.dump(model, run_directory() / MODEL_FILE)
    return {"train_accuracy": float(model.score(train_x, train_y))}


if __name__ == "__main__":
    result = train.run()
    if best := result.best:
        print(f"best of {len(result.runs)} runs: {best.run_id} reaches {best.score:.4f} with {best.config}")
