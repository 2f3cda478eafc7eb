"""Real training on data sets that scikit-learn brings along: a tenth of a second each, with conditional parameters."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

from metta.sweep.model.space import Choice, Config, LogUniform, Range, SearchSpace, Uniform

_FOLDS = 3

SVM_SPACE = SearchSpace.of(
    {
        "components": Range(4, 64, log=True),
        "kernel": Choice(["linear", "rbf", "poly", "sigmoid"]),
        "C": LogUniform(1e-3, 1e3),
        "gamma": LogUniform(1e-4, 1e1, when={"kernel": ["rbf", "poly", "sigmoid"]}),
        "degree": Range(2, 5, when={"kernel": "poly"}),
        "coef0": Uniform(-1.0, 1.0, when={"kernel": ["poly", "sigmoid"]}),
    }
)


def svm_digits(config: Config) -> float:
    """Accuracy of a support vector machine on 900 handwritten digits, after a principal component analysis."""
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import SVC

    options = dict(config)
    reduction = PCA(options.pop("components"), svd_solver="full")
    features, labels = _data("digits")
    return _validated(make_pipeline(reduction, SVC(**options)), features[:900] / 16, labels[:900], "accuracy")


BOOSTING_SPACE = SearchSpace.of(
    {
        "loss": Choice(["squared_error", "absolute_error", "huber"]),
        "alpha": Uniform(0.5, 0.99, when={"loss": "huber"}),
        "learning_rate": LogUniform(0.005, 1.0),
        "n_estimators": Range(10, 150, log=True),
        "max_depth": Range(1, 6),
        "min_samples_leaf": Range(1, 60, log=True),
        "subsample": Uniform(0.2, 1.0),
        "max_features": Uniform(0.1, 1.0),
    }
)


def boosting_diabetes(config: Config) -> float:
    """Root mean squared error of boosted trees that predict how diabetes goes on."""
    from sklearn.ensemble import GradientBoostingRegressor

    model = GradientBoostingRegressor(random_state=0, **config)
    return -_validated(model, *_data("diabetes"), "neg_root_mean_squared_error")


MLP_SPACE = SearchSpace.of(
    {
        "layers": Range(1, 3),
        "width": Range(4, 64, log=True),
        "activation": Choice(["relu", "tanh", "logistic"]),
        "alpha": LogUniform(1e-6, 1e1),
        "batch_size": Range(16, 256, log=True),
        "learning_rate_init": LogUniform(1e-4, 1.0),
        "solver": Choice(["adam", "sgd"]),
        "beta_1": Uniform(0.5, 0.99, when={"solver": "adam"}),
        "momentum": Uniform(0.0, 0.99, when={"solver": "sgd"}),
        "nesterovs_momentum": Choice([True, False], when={"solver": "sgd"}),
    }
)


def mlp_cancer(config: Config) -> float | None:
    """Log loss of a neural network that tells tumours apart after 15 epochs; None where it diverges."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    options = dict(config)
    hidden = (options.pop("width"),) * options.pop("layers")
    model = MLPClassifier(hidden, max_iter=15, random_state=0, **options)
    try:
        return -_validated(make_pipeline(StandardScaler(), model), *_data("breast_cancer"), "neg_log_loss")
    except ValueError as error:
        if "non-finite" in str(error) or "NaN" in str(error):
            return None
        raise


@cache
def _data(name: str) -> tuple[Any, Any]:
    from sklearn import datasets

    return getattr(datasets, f"load_{name}")(return_X_y=True)


def _validated(model: Any, features: Any, targets: Any, scoring: str) -> float:
    """Mean score over folds that are always the same."""
    from sklearn.base import is_classifier
    from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score

    folds = (StratifiedKFold if is_classifier(model) else KFold)(_FOLDS, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        # So few epochs do not converge, and are not meant to; where numbers overflow, the score says so.
        warnings.simplefilter("ignore")
        scores = cross_val_score(model, features, targets, cv=folds, scoring=scoring, error_score="raise")
    return float(scores.mean())
