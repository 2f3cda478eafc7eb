"""Search spaces to begin with, for common kinds of models, and where their bounds come from.

A space is the range within which the sources report or recommend values, seldom wider than a factor of ten beyond the
library's default, and no more parameters than a sweep of some dozen runs can tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from metta.sweep.errors import ConfigError, did_you_mean
from metta.sweep.model.space import Choice, LogUniform, Parameter, Range, Uniform


class Preset(msgspec.Struct, frozen=True, kw_only=True):
    """A search space for a kind of model."""

    space: Mapping[str, Parameter]
    #: Papers and documents that the ranges come from.
    sources: tuple[str, ...]


PRESETS: dict[str, Preset] = {
    "transformer_finetuning": Preset(
        space={
            "lr": LogUniform(5e-6, 1e-4),
            "batch_size": Choice([8, 16, 32, 64]),
            "epochs": Range(2, 10),
            "warmup_ratio": Uniform(0.0, 0.1),
            "weight_decay": Uniform(0.0, 0.1),
        },
        sources=(
            "Devlin et al. 2019, BERT, appendix A.3: batch 16 or 32, learning rate 2e-5 to 5e-5, 2 to 4 epochs",
            "Liu et al. 2019, RoBERTa, table 10: learning rate 1e-5 to 3e-5, weight decay 0.1, warmup 6 %",
            "Mosbach et al. 2021, On the stability of fine-tuning BERT: more epochs and warmup make it stable",
        ),
    ),
    "transformer_pretraining": Preset(
        space={
            "lr": LogUniform(1e-4, 6e-3),
            "warmup_steps": Range(100, 10_000, log=True),
            "weight_decay": LogUniform(1e-2, 3e-1),
            "beta2": Choice([0.95, 0.98, 0.99, 0.999]),
            "dropout": Choice([0.0, 0.1, 0.2]),
            "gradient_clip": Choice([0.5, 1.0, 2.0]),
        },
        sources=(
            "Brown et al. 2020, GPT-3, table 2.1, appendix B: rate 6e-5 to 6e-4, beta2 0.95, decay 0.1, clip 1",
            "Vaswani et al. 2017, Attention is all you need, section 5: beta2 0.98, 4000 steps of warmup, dropout 0.1",
            "Wortsman et al. 2024, Small-scale proxies for large-scale transformer training instabilities",
        ),
    ),
    "cnn": Preset(
        space={
            "lr": LogUniform(1e-3, 1.0),
            "momentum": Choice([0.8, 0.9, 0.95, 0.99]),
            "weight_decay": LogUniform(1e-5, 1e-2),
            "batch_size": Choice([32, 64, 128, 256]),
            "label_smoothing": Choice([0.0, 0.1]),
        },
        sources=(
            "He et al. 2016, Deep residual learning, section 3.4: SGD at 0.1, momentum 0.9, decay 1e-4, batch 256",
            "Goyal et al. 2017, Accurate, large minibatch SGD: learning rate in proportion to the batch size",
            "Dahl et al. 2023, Benchmarking neural network training algorithms (AlgoPerf): tuning spaces",
        ),
    ),
    "mlp": Preset(
        space={
            "lr": LogUniform(1e-5, 1e-2),
            "layers": Range(1, 8),
            "width": Range(64, 1024, log=True),
            "dropout": Uniform(0.0, 0.5),
            "weight_decay": LogUniform(1e-6, 1e-3),
            "batch_size": Choice([64, 128, 256, 512]),
        },
        sources=(
            "Gorishniy et al. 2021, Revisiting deep learning models for tabular data: tuning space of the MLP",
            "Zimmer et al. 2021, Auto-PyTorch Tabular (LCBench): width 64 to 1024, batch 16 to 512",
        ),
    ),
    "xgboost": Preset(
        space={
            "n_estimators": Range(100, 2000, log=True),
            "learning_rate": LogUniform(1e-3, 0.5),
            "max_depth": Range(3, 10),
            "min_child_weight": LogUniform(1.0, 100.0),
            "subsample": Uniform(0.5, 1.0),
            "colsample_bytree": Uniform(0.5, 1.0),
            "reg_lambda": LogUniform(1e-3, 10.0),
            "gamma": Uniform(0.0, 5.0),
        },
        sources=(
            "Grinsztajn et al. 2022, Why do tree-based models still outperform deep learning: search spaces",
            "Gorishniy et al. 2021, Revisiting deep learning models for tabular data: tuning space of XGBoost",
            "Probst et al. 2019, Tunability, table 1: subsample 0.1 to 1, eta 2^-10 to 1, depth 1 to 15",
        ),
    ),
    "lightgbm": Preset(
        space={
            "n_estimators": Range(100, 2000, log=True),
            "learning_rate": LogUniform(5e-3, 0.3),
            "num_leaves": Range(8, 512, log=True),
            "min_child_samples": Range(5, 200, log=True),
            "subsample": Uniform(0.5, 1.0),
            "colsample_bytree": Uniform(0.5, 1.0),
            "reg_lambda": LogUniform(1e-3, 10.0),
        },
        sources=(
            "LightGBM documentation, Parameters tuning: num_leaves and min_data_in_leaf against overfitting",
            "Shwartz-Ziv and Armon 2022, Tabular data: deep learning is not all you need: search spaces",
        ),
    ),
    "random_forest": Preset(
        space={
            "n_estimators": Range(100, 1000, log=True),
            "max_features": Uniform(0.1, 1.0),
            "min_samples_leaf": Range(1, 50, log=True),
            "max_depth": Choice([None, 5, 10, 20, 40]),
            "bootstrap": Choice([True, False]),
        },
        sources=(
            "Probst, Wright and Boulesteix 2019, Hyperparameters and tuning strategies for random forest",
            "Grinsztajn et al. 2022, Why do tree-based models still outperform deep learning: search spaces",
        ),
    ),
    "svm": Preset(
        space={
            "C": LogUniform(2**-5, 2**15),
            "kernel": Choice(["rbf", "linear"]),
            "gamma": LogUniform(2**-15, 2**3, when={"kernel": "rbf"}),
        },
        sources=("Hsu, Chang and Lin 2003, A practical guide to support vector classification, section 3.2",),
    ),
    "ppo": Preset(
        space={
            "lr": LogUniform(1e-5, 1e-2),
            "gamma": Choice([0.98, 0.99, 0.995, 0.999]),
            "gae_lambda": Uniform(0.8, 1.0),
            "clip_range": Choice([0.1, 0.2, 0.3]),
            "entropy_coefficient": LogUniform(1e-5, 0.1),
            "epochs": Range(1, 20, log=True),
            "rollout_steps": Choice([128, 256, 512, 1024, 2048]),
        },
        sources=(
            "Schulman et al. 2017, Proximal policy optimization algorithms, tables 3 to 5",
            "Andrychowicz et al. 2021, What matters for on-policy deep actor-critic methods?",
            "Engstrom et al. 2020, Implementation matters in deep policy gradients",
        ),
    ),
    "dqn": Preset(
        space={
            "lr": LogUniform(1e-5, 1e-3),
            "gamma": Choice([0.95, 0.98, 0.99, 0.995]),
            "batch_size": Choice([32, 64, 128]),
            "target_update_steps": Range(100, 30_000, log=True),
            "exploration_fraction": Uniform(0.05, 0.5),
            "final_epsilon": LogUniform(0.01, 0.1),
            "buffer_size": Range(10_000, 1_000_000, log=True),
        },
        sources=(
            "Mnih et al. 2015, Human-level control through deep reinforcement learning, extended data table 1",
            "Hessel et al. 2018, Rainbow, table 1: learning rate 6.25e-5, target period 32,000 frames",
        ),
    ),
    "gan": Preset(
        space={
            "generator_lr": LogUniform(1e-5, 1e-3),
            "discriminator_lr": LogUniform(1e-5, 1e-3),
            "beta1": Choice([0.0, 0.5]),
            "beta2": Choice([0.9, 0.99, 0.999]),
            "discriminator_steps": Choice([1, 2, 5]),
            "gradient_penalty": LogUniform(0.1, 20.0),
        },
        sources=(
            "Radford et al. 2016, DCGAN: Adam at 2e-4 with beta1 0.5",
            "Gulrajani et al. 2017, Improved training of Wasserstein GANs, algorithm 1: penalty 10, five critic steps",
            "Heusel et al. 2017, Two time-scale update rule: a learning rate of its own for each network",
        ),
    ),
    "diffusion": Preset(
        space={
            "lr": LogUniform(1e-5, 1e-3),
            "ema_decay": Choice([0.99, 0.999, 0.9999]),
            "dropout": Choice([0.0, 0.1, 0.2, 0.3]),
            "noise_schedule": Choice(["linear", "cosine"]),
            "batch_size": Choice([64, 128, 256]),
        },
        sources=(
            "Ho et al. 2020, Denoising diffusion probabilistic models, appendix B: 2e-4, EMA 0.9999, dropout 0.1",
            "Nichol and Dhariwal 2021, Improved denoising diffusion probabilistic models: cosine schedule, 1e-4",
        ),
    ),
}

#: What else these are called.
_ALIASES = {
    "transformer": "transformer_finetuning",
    "resnet": "cnn",
    "bert": "transformer_finetuning",
    "finetuning": "transformer_finetuning",
    "gpt": "transformer_pretraining",
    "pretraining": "transformer_pretraining",
    "llm": "transformer_pretraining",
    "gradient_boosting": "xgboost",
    "gbm": "lightgbm",
    "gbdt": "lightgbm",
    "forest": "random_forest",
    "svc": "svm",
    "ddpm": "diffusion",
}


def find_preset(model_type: str) -> Preset:
    """The preset of that name, in whatever way it is written: `Random Forest`, `random-forest`, `random_forest`.

    Raises:
        ConfigError: there is none; names those that there are.
    """
    if not isinstance(model_type, str):
        raise ConfigError(f'model_type: needs the name of a kind of model, such as "cnn", got {model_type!r}')
    name = model_type.strip().lower().replace(" ", "_").replace("-", "_")
    name = _ALIASES.get(name, name)
    if name not in PRESETS:
        hint = did_you_mean(name, {*PRESETS, *_ALIASES})
        raise ConfigError(f"model_type: there is no search space for {model_type!r}; {hint}")
    return PRESETS[name]
