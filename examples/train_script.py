"""An ordinary training script. It knows nothing of sweeps; `command.yaml` beside it sweeps it all the same.

    python train_script.py --lr 0.01 --optimizer sgd --momentum 0.9

It prints one JSON object after each epoch, which is all that a sweep needs to follow it.
"""

import argparse
import json

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier


def parse_arguments() -> argparse.Namespace:
    """Read the hyperparameters from the command line."""
    parser = argparse.ArgumentParser(description="Train a small network to read handwritten digits.")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="samples in a step (default: %(default)s)")
    parser.add_argument("--hidden-units", type=int, default=64, help="width of the layer (default: %(default)s)")
    parser.add_argument("--optimizer", choices=["adam", "sgd"], default="adam", help="(default: %(default)s)")
    parser.add_argument("--momentum", type=float, default=0.9, help="for sgd only (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=30, help="passes over the data (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Train, and print loss and accuracy after each epoch."""
    args = parse_arguments()
    pixels, digits = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(pixels / 16.0, digits, stratify=digits, random_state=0)
    network = MLPClassifier(
        hidden_layer_sizes=[args.hidden_units],
        solver=args.optimizer,
        momentum=args.momentum,
        learning_rate_init=args.lr,
        batch_size=args.batch_size,
        random_state=0,
    )
    for epoch in range(1, args.epochs + 1):
        network.partial_fit(train_x, train_y, classes=range(10))
        metrics = {"epoch": epoch, "loss": float(network.loss_), "accuracy": float(network.score(test_x, test_y))}
        print(json.dumps(metrics), flush=True)


if __name__ == "__main__":
    main()
