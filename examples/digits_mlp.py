"""Sweep a small neural network over scikit-learn's handwritten digits.

    metta sweep run examples/digits_mlp.py --max-trials 20
    metta sweep best

A trial trains for eighty epochs, a second or two, and reports its validation accuracy after each. Interrupt the sweep
whenever you like and run the same command again: it goes on where it was, and so does a trial that was killed half-way,
to the same result as if it had not been.

The same file works without a sweep too: `train({"lr": 0.01, "batch_size": 32, ...})` is an ordinary function call.
"""

from typing import Any

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from metta.sweep import Choice, LogUniform, load_checkpoint, report_metrics, save_checkpoint, should_stop, sweep

EPOCHS = 80

# A trial is a process of its own, forked from one that has imported this file: the data is loaded once for all of them.
pixels, digits = load_digits(return_X_y=True)
train_x, valid_x, train_y, valid_y = train_test_split(
    pixels / 16.0, digits, test_size=0.25, stratify=digits, random_state=0
)


@sweep(
    search_space={
        "lr": LogUniform(1e-4, 1e-1),
        "batch_size": Choice([16, 32, 64, 128]),
        "hidden_layer_sizes": Choice([[32], [64], [128], [256], [64, 64], [128, 128]]),
        "alpha": LogUniform(1e-6, 1e-1),
        "activation": Choice(["relu", "tanh", "logistic"]),
    },
    strategy="random",
    max_parallel=2,
    max_trials=60,
    checkpoints={"last": 2},
    metric="validation_accuracy",
    direction="maximize",
)
def train(config: dict[str, Any]) -> dict[str, float]:
    """Train one network and say how well it reads digits that it has not seen."""
    network, epoch = new_network(config), 0
    if checkpoint := load_checkpoint():  # this trial was under way before, or goes on from another one's weights
        network, epoch = adjusted(checkpoint.value, config), checkpoint.step
    while epoch < EPOCHS and not should_stop():
        epoch += 1
        network.partial_fit(train_x, train_y, classes=range(10))
        accuracy = float(network.score(valid_x, valid_y))
        report_metrics({"validation_accuracy": accuracy, "epoch": epoch}, raise_on_stop=False)
        if epoch % 10 == 0 or should_stop():
            save_checkpoint(network, step=epoch)
    return {"validation_accuracy": float(network.score(valid_x, valid_y))}


def adjusted(network: MLPClassifier, config: dict[str, Any]) -> MLPClassifier:
    """The network, to be trained on with these hyperparameters; those of its architecture are as they were."""
    network.set_params(alpha=config["alpha"], batch_size=config["batch_size"], learning_rate_init=config["lr"])
    network._optimizer.learning_rate_init = config["lr"]  # scikit-learn hands it over at the first epoch alone
    return network


def new_network(config: dict[str, Any]) -> MLPClassifier:
    """A network that has learned nothing yet."""
    return MLPClassifier(
        hidden_layer_sizes=config["hidden_layer_sizes"],
        activation=config["activation"],
        alpha=config["alpha"],
        batch_size=config["batch_size"],
        learning_rate_init=config["lr"],
        random_state=0,
    )


if __name__ == "__main__":
    result = train.run()
    if best := result.best:
        print(f"best of {len(result.runs)} runs: {best.run_id} reaches {best.score:.4f} with {best.config}")
