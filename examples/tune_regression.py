"""Tune a regression by descending the validation loss through the optimizer: per-feature elastic-net penalties on the diabetes data.

For every fold the coefficients solve a convex problem whose penalties are parameters,

    w(l1, l2) = argmin_w  1/2 w'(X'X/m + diag(l2)) w - (X'y/m)'w + l1'|w|,

and the layer's exact derivative turns the validation loss of w(l1, l2) into a gradient for all twenty penalties at once, where a grid
search over them is out of reach. The comparison is plain cross-validation: one penalty and one mixing ratio for all features.

    python examples/tune_regression.py [--steps 150] [--figure FILE]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cvxpy as cp
import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import ElasticNetCV
from sklearn.model_selection import KFold, train_test_split
from tqdm import tqdm

from cvxlayers.torch import CvxpyLayer

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOLDS = 5
FIGURE = Path(__file__).with_suffix(".png")


def build_layer(features: int) -> CvxpyLayer:
    """Gram matrix, correlation and l1 penalties in, coefficients out."""
    w = cp.Variable(features)
    gram = cp.Parameter((features, features), PSD=True, name="gram")
    correlation = cp.Parameter(features, name="correlation")
    l1 = cp.Parameter(features, nonneg=True, name="l1")
    objective = cp.quad_form(w, gram) / 2 - correlation @ w + l1 @ cp.abs(w)
    return CvxpyLayer(cp.Problem(cp.Minimize(objective)), parameters=[gram, correlation, l1], variables=[w])


class Folds:
    """Training moments of every fold, and its validation rows."""

    def __init__(self, X: np.ndarray, y: np.ndarray) -> None:
        self.grams, self.correlations, self.validation = [], [], []
        for train, valid in KFold(FOLDS, shuffle=True, random_state=0).split(X):
            X_mean, y_mean = X[train].mean(0), y[train].mean()
            X_train, y_train = X[train] - X_mean, y[train] - y_mean
            self.grams.append(X_train.T @ X_train / len(train))
            self.correlations.append(X_train.T @ y_train / len(train))
            self.validation.append((torch.tensor(X[valid] - X_mean), torch.tensor(y[valid] - y_mean)))
        self.gram = torch.tensor(np.array(self.grams))
        self.correlation = torch.tensor(np.array(self.correlations))

    def loss(self, layer: CvxpyLayer, log_penalties: torch.Tensor) -> torch.Tensor:
        """Mean validation error of all folds, in one batched call of the layer."""
        l1, l2 = log_penalties.exp()
        (w,) = layer(self.gram + torch.diag(l2), self.correlation, l1)
        return torch.stack([((X @ w[k] - y) ** 2).mean() for k, (X, y) in enumerate(self.validation)]).mean()


def fit(layer: CvxpyLayer, X: np.ndarray, y: np.ndarray, log_penalties: torch.Tensor) -> tuple[np.ndarray, float]:
    """Coefficients and intercept on all training rows."""
    X_mean, y_mean = X.mean(0), y.mean()
    gram, correlation = (X - X_mean).T @ (X - X_mean) / len(X), (X - X_mean).T @ (y - y_mean) / len(X)
    with torch.no_grad():
        l1, l2 = log_penalties.exp()
        (w,) = layer(torch.tensor(gram) + torch.diag(l2), torch.tensor(correlation), l1)
    coefficients = w.numpy()
    return coefficients, float(y_mean - X_mean @ coefficients)


def gradient_error(layer: CvxpyLayer, folds: Folds, log_penalties: torch.Tensor, step: float = 1e-4) -> float:
    """Largest difference between the layer's gradient and central differences, relative to the largest entry of the gradient."""
    point = log_penalties.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(folds.loss(layer, point), point)
    differences = torch.zeros_like(gradient)
    with torch.no_grad():
        for index in np.ndindex(*point.shape):
            ahead, behind = log_penalties.clone(), log_penalties.clone()
            ahead[index] += step
            behind[index] -= step
            differences[index] = (folds.loss(layer, ahead) - folds.loss(layer, behind)) / (2 * step)
    return float((gradient - differences).abs().max() / gradient.abs().max())


def run(steps: int = 150, figure: Path | None = FIGURE) -> dict[str, float]:
    """Learn the penalties, compare with plain cross-validation, draw the figure; returns the numbers it prints."""
    data: Any = load_diabetes()
    split: Any = train_test_split(data.data / data.data.std(0), data.target, test_size=0.25, random_state=0)
    X, X_test, y, y_test = split
    layer, folds = build_layer(X.shape[1]), Folds(X, y)

    grid: Any = [0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 1.0]
    plain = ElasticNetCV(l1_ratio=grid, alphas=100, cv=KFold(FOLDS, shuffle=True, random_state=0), max_iter=100_000).fit(X, y)
    alpha, ratio = plain.alpha_, plain.l1_ratio_
    floor = 1e-3
    start = torch.tensor([[max(alpha * ratio, floor)], [max(alpha * (1 - ratio), floor)]]).log().repeat(1, X.shape[1])

    log_penalties = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([log_penalties], lr=0.1)
    history, best, began = [], (np.inf, start), time.perf_counter()
    with tqdm(range(steps), desc="descending the validation loss") as progress:
        for _ in progress:
            optimizer.zero_grad()
            loss = folds.loss(layer, log_penalties)
            loss.backward()
            history.append(loss.item())
            if history[-1] < best[0]:
                best = (history[-1], log_penalties.detach().clone())
            optimizer.step()
            progress.set_postfix(validation=f"{history[-1]:.1f}", refresh=False)
    seconds = time.perf_counter() - began
    learned = best[1]

    w, intercept = fit(layer, X, y, learned)
    results = {
        "plain validation": float(folds.loss(layer, start).detach()),
        "learned validation": best[0],
        "plain test": float(((plain.predict(X_test) - y_test) ** 2).mean()),
        "learned test": float(((X_test @ w + intercept - y_test) ** 2).mean()),
        "gradient error": gradient_error(layer, folds, learned),
        "seconds": seconds,
    }
    report(results, steps)
    if figure is not None:
        draw(figure, data.feature_names, history, results, learned, plain.coef_, w)
    return results


def report(results: dict[str, float], steps: int) -> None:
    """Print the comparison."""
    print(f"mean squared error          {'validation':>12} {'held-out test':>14}")
    print(f"plain cross-validation      {results['plain validation']:12.1f} {results['plain test']:14.1f}")
    print(f"learned per-feature         {results['learned validation']:12.1f} {results['learned test']:14.1f}")
    print(f"gradient against central differences: largest error {results['gradient error']:.1e} relative to the largest entry")
    print(f"{steps} steps, {FOLDS} folds each, in {results['seconds']:.1f} s")


def draw(
    path: Path,
    names: Sequence[str],
    history: Sequence[float],
    results: dict[str, float],
    learned: torch.Tensor,
    plain: np.ndarray,
    w: np.ndarray,
) -> None:
    """The descent of the validation loss, the penalties it found, and the coefficients they give."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), constrained_layout=True)
    axes[0].plot(history, color="tab:blue", label="learned penalties")
    axes[0].axhline(results["plain validation"], color="tab:gray", linestyle="--", label="plain cross-validation")
    axes[0].set(xlabel="step", ylabel="validation mean squared error", title="descending the validation loss")
    axes[0].legend()
    places = np.arange(len(names))
    for offset, row, label in ((-0.2, 0, "$\\ell_1$"), (0.2, 1, "$\\ell_2$")):
        axes[1].bar(places + offset, learned[row].exp().numpy(), 0.4, label=label)
    axes[1].set(yscale="log", xticks=places, xticklabels=names, ylabel="penalty", title="learned penalties")
    axes[1].set_ylim(top=10 * axes[1].get_ylim()[1])  # room for the legend
    axes[1].legend(loc="upper center", ncols=2)
    axes[2].bar(places - 0.2, plain, 0.4, color="tab:gray", label="plain")
    axes[2].bar(places + 0.2, w, 0.4, color="tab:blue", label="learned")
    axes[2].set(xticks=places, xticklabels=names, ylabel="coefficient (standardized features)", title="coefficients")
    axes[2].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"figure: {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    arguments = parser.parse_args()
    run(arguments.steps, arguments.figure)
