"""Compensation: what the removed units carried is predicted from the kept ones and folded into the consumers.

With K kept and P removed, the best affine prediction of what a consumer read from the removed positions is
`z_P ≈ A z_K + b` with `A = C_PK (C_KK + εI)⁻¹` and `b = m_P − A m_K`. Its weight W then becomes `W_K + W_P A`, its bias
grows by `W_P b`. Without a bias the prediction is linear, from second moments about zero. Least squares on responses
is the interpolative step of Chee et al., "Model Preserving Compression for Neural Networks" (NeurIPS 2022), and of
Spectral Pruning for RNNs (Furuya et al., arXiv 2105.10832); here each consumer has the statistics of what it actually
reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from reprune.core.evidence.readings import Matrix, Places, Reading, SecondMoments
from reprune.core.folding.fold import Fold
from reprune.core.layers import Structure

Prediction = tuple[Matrix, Matrix]
Ridges = dict[object, float]
"""Ridges that were found for what is read."""
Compensation = Callable[[Structure, Mapping[str, Sequence[int]], Sequence[Reading], Ridges], tuple[Fold, ...]]
"""From the units that are kept to the folds. Ridges that are given hold for these units, too; new ones are added."""

RIDGES = tuple(10.0**power for power in range(-8, 1))
"""Ridges that are tried, as shares of the mean variance of the kept features."""
RIDGE_UNSEEN = 1e-4
"""The ridge where nothing is held out."""


def reconstruction(
    structure: Structure, kept: Mapping[str, Sequence[int]], readings: Sequence[Reading], ridges: Ridges
) -> tuple[Fold, ...]:
    """Folds that rebuild what the removed units carried, for every consumer that loses positions."""
    return _folds(structure, kept, readings, partial(predict, ridges=ridges))


def mean(
    structure: Structure, kept: Mapping[str, Sequence[int]], readings: Sequence[Reading], ridges: Ridges
) -> tuple[Fold, ...]:
    """Folds that replace the removed units by their mean response, in the consumers that have a bias to take it."""

    def rule(reading: Reading, gone: Places, stay: Places) -> Prediction:
        return np.zeros((len(gone), len(stay))), reading.exact.mean[gone]

    return _folds(structure, kept, readings, rule)


COMPENSATIONS: dict[str, Compensation] = {
    "reconstruction": reconstruction,
    "least-squares": reconstruction,
    "mean": mean,
}
"""By name. `reconstruction` is followed by refitting to the dense model's answers (`core.answers.gauss_newton`)."""


def _folds(
    structure: Structure,
    kept: Mapping[str, Sequence[int]],
    readings: Sequence[Reading],
    rule: Callable[[Reading, Places, Places], Prediction],
) -> tuple[Fold, ...]:
    removed = {name: sorted(set(range(layer.units)) - set(kept[name])) for name, layer in structure.layers.items()}
    folds = []
    # Consumers that read the very same features are told the same.
    known: dict[tuple[object, ...], Prediction] = {}
    for reading in readings:
        gone = reading.slot.positions(removed)
        if len(gone):
            key = (reading.exact_source, gone.tobytes())
            if key not in known:
                known[key] = rule(reading, gone, np.setdiff1d(np.arange(reading.slot.size), gone))
            consumer = reading.consumer
            folds.append(Fold.of(consumer.tensor, consumer.axis, consumer.bias, *known[key]))
    return tuple(folds)


def predict(reading: Reading, gone: Places, stay: Places, ridges: Ridges) -> Prediction:
    """Coefficients A (removed × kept) and offsets b (removed) of the best prediction."""
    if reading.exact_source not in ridges:
        ridges[reading.exact_source] = _best_ridge(reading, gone, stay)
    moments, ridge = reading.exact, ridges[reading.exact_source]
    coefficients = _solve(moments.matrix[np.ix_(stay, stay)], moments.matrix[np.ix_(gone, stay)], ridge)
    return coefficients, moments.mean[gone] - coefficients @ moments.mean[stay]


def _best_ridge(reading: Reading, gone: Places, stay: Places) -> float:
    """The ridge that predicts held-out rows best: fitted on either half of the rows, judged on the other."""
    if reading.halves is None:
        return RIDGE_UNSEEN
    first, second = reading.halves
    errors = np.add(held_out(first, second, gone, stay), held_out(second, first, gone, stay))
    return RIDGES[int(np.argmin(errors))]


def held_out(fit: SecondMoments, judge: SecondMoments, gone: Places, stay: Places) -> list[float]:
    """Squared error on `judge` of the predictions fitted on `fit`, one for each of `RIDGES`, up to a constant."""
    among, cross = fit.matrix[np.ix_(stay, stay)], fit.matrix[np.ix_(gone, stay)]
    shift = judge.mean - fit.mean
    # About the mean of the fit, so that what the prediction's offset gets wrong is counted.
    about = judge.matrix + np.outer(shift, shift)
    spread, target = about[np.ix_(stay, stay)], about[np.ix_(gone, stay)]
    level = float(np.mean(among.diagonal())) if len(among) else 0.0
    if level <= 0:
        return [0.0] * len(RIDGES)
    # One eigendecomposition serves all ridges. With C_KK = V Λ Vᵀ, A = B D Vᵀ where B = C_PK V and D = (Λ + εI)⁻¹, so
    # that both terms of the error are sums over the entries of D.
    values, vectors = np.linalg.eigh(among)
    turned = cross @ vectors
    square = (vectors.T @ spread @ vectors) * (turned.T @ turned)
    linear = np.sum(turned * (target @ vectors), axis=0)
    errors = []
    for ridge in RIDGES:
        inverse = 1 / (np.maximum(values, 0.0) + ridge * level)
        errors.append(float(inverse @ square @ inverse - 2 * linear @ inverse))
    return errors


def _solve(among: Matrix, cross: Matrix, ridge: float) -> Matrix:
    """C_PK (C_KK + εI)⁻¹. Every ridge is far above rounding: there is an inverse unless all features are constant."""
    spread = float(np.mean(among.diagonal())) if len(among) else 0.0
    if spread <= 0:
        return np.zeros_like(cross)
    return np.asarray(np.linalg.solve(among + ridge * spread * np.eye(len(among)), cross.T).T)
