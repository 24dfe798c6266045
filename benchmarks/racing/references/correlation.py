"""The nearest correlation matrix: X = Pi(C + Diag y) with diag X = 1, Newton's method for y (Qi, Sun, 2006).

Pi projects on the semidefinite matrices; its derivative at V diag(l) V' is H -> V (W * V'HV) V', W_ij = (l_i+ - l_j+) / (l_i - l_j).
With D that derivative, the gradient of <G, X> in C is D[G - Diag v], where diag D[Diag v] = diag D[G].
"""

from __future__ import annotations

import numpy as np

from racing.workload import Workload

STEPS, EXACT = 60, 1e-12


def answer(workload: Workload, data: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The answer and the gradient of the sum of weights times it."""
    rows = [_row(workload, (C + C.T) / 2, (G + G.T) / 2) for C, G in zip(data["C"], data["weights"], strict=True)]
    return np.stack([x for x, _ in rows]), {"C": np.stack([g for _, g in rows])}


def _row(workload: Workload, C: np.ndarray, G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y = np.zeros(len(C))
    X, V, W = _project(C)
    for _ in range(STEPS):
        left = np.abs(np.diag(X) - 1).max()
        if left < EXACT:
            break
        step = np.linalg.solve(_jacobian(V, W), 1 - np.diag(X))
        length = 1.0
        while length > 1e-4:  # damped: the residual must fall
            X, V, W = _project(C + np.diag(y + length * step))
            if np.abs(np.diag(X) - 1).max() < left:
                break
            length /= 2
        y = y + length * step
    if not np.abs(np.diag(X) - 1).max() < 1e-10:
        raise RuntimeError(f"no reference for {workload.key}: residual {np.abs(np.diag(X) - 1).max():.1e}")
    v = np.linalg.solve(_jacobian(V, W), np.diag(_moved(G, V, W)))
    return X, _moved(G - np.diag(v), V, W)


def _project(S: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pi(S), the eigenvectors V and the weights W of its derivative."""
    values, V = np.linalg.eigh(S)
    kept = np.maximum(values, 0)
    gap = values[:, None] - values
    same = np.abs(gap) < 1e-14
    W = np.where(same, (values > 0)[:, None], (kept[:, None] - kept) / np.where(same, 1.0, gap))
    return (V * kept) @ V.T, V, W


def _moved(H: np.ndarray, V: np.ndarray, W: np.ndarray) -> np.ndarray:
    return V @ (W * (V.T @ H @ V)) @ V.T


def _jacobian(V: np.ndarray, W: np.ndarray) -> np.ndarray:
    """The matrix of v -> diag D[Diag v]."""
    pairs = V[:, :, None] * V[:, None, :]
    return np.einsum("iab,ab,jab->ij", pairs, W, pairs)
