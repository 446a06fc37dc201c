"""What the three deviations of the ISS-GM authors' script from their paper amount to, in numbers.

The script's behaviour is written here from its description; nothing of its text is used. Everything is synthetic,
seeded and small, so that the tables are the same everywhere: they stand in docs/fidelity.md, and a test compares them.

    python benchmarks/fidelity.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from reprune.core.allocation.energy import components, share
from reprune.core.evidence.moments import Moments

Array = NDArray[np.float64]
Rule = Callable[[Array, float], int]

UNITS = 512
POSITIONS = np.arange(UNITS, dtype=np.float64)
SPECTRA: Mapping[str, Array] = {"redundant": 0.95**POSITIONS, "rich": 1.0 - POSITIONS / UNITS}


def tables() -> str:
    return "\n\n".join((one_threshold(), one_budget(), repeated_subtraction(), leftovers())) + "\n"


def main() -> None:
    print(tables(), end="")


# -- 1. which components count -----------------------------------------------------------------------------------------


def kept_by_paper(spectrum: Array, threshold: float) -> int:
    return components(spectrum, threshold)


def kept_by_script(spectrum: Array, threshold: float) -> int:
    """As many units as there are components beyond the threshold."""
    return len(spectrum) - components(spectrum, threshold)


RULES: Mapping[str, Rule] = {"paper": kept_by_paper, "script": kept_by_script}


def one_threshold() -> str:
    lines = ["1a. Units removed at one threshold", f"{'threshold':>9}  {'rule':<6}  {'redundant':>9}  {'rich':>9}"]
    for threshold in (0.8, 0.9, 0.99):
        for name, rule in RULES.items():
            gone = [1 - rule(spectrum, threshold) / UNITS for spectrum in SPECTRA.values()]
            lines.append(f"{threshold:>9.2f}  {name:<6}  {gone[0]:>9.1%}  {gone[1]:>9.1%}")
    return "\n".join(lines)


def one_budget() -> str:
    """Half of all units of a redundant and a rich layer of equal size, one threshold for both found by bisection."""
    lines = [
        "1b. Units removed when half of all units must go, and the energy that as many components hold",
        f"{'rule':<6}  {'redundant':>9}  {'rich':>9}  {'energy kept: redundant':>22}  {'rich':>6}",
    ]
    for name, rule in RULES.items():
        kept = [rule(spectrum, threshold_for(rule, 0.5)) for spectrum in SPECTRA.values()]
        energy = [share(spectrum)[:count].sum() for spectrum, count in zip(SPECTRA.values(), kept, strict=True)]
        gone = [1 - count / UNITS for count in kept]
        lines.append(f"{name:<6}  {gone[0]:>9.1%}  {gone[1]:>9.1%}  {energy[0]:>22.1%}  {energy[1]:>6.1%}")
    return "\n".join(lines)


def threshold_for(rule: Rule, ratio: float) -> float:
    low, high = 0.0, 1.0
    rising = rule(SPECTRA["rich"], high) > rule(SPECTRA["rich"], low)
    for _ in range(50):
        middle = (low + high) / 2
        kept = sum(rule(spectrum, middle) for spectrum in SPECTRA.values())
        enough = kept >= (1 - ratio) * UNITS * len(SPECTRA)
        if enough == rising:
            high = middle
        else:
            low = middle
    return high if rising else low


# -- 2. the covariance -------------------------------------------------------------------------------------------------


def repeated_subtraction() -> str:
    rng = np.random.default_rng(0)
    size = 32
    rows = 0.3 + rng.normal(size=(4000, size)) * 0.9 ** np.arange(size)
    exact = np.cov(rows, rowvar=False, ddof=0)
    lines = [
        "2. Error of the covariance, in its own norm, and its smallest eigenvalue (exact: "
        f"{np.linalg.eigvalsh(exact)[0]:.4f})",
        f"{'batches':>7}  {'script':>9}  {'eigenvalue':>10}  {'reprune':>9}  {'eigenvalue':>10}",
    ]
    for count in (1, 2, 10, 40):
        parts = np.array_split(rows, count)
        moments = Moments("synthetic", size)
        for part in parts:
            moments.update(part)
        cells = []
        for found in (running_covariance(parts), moments.covariance):
            error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
            cells.append(f"{error:>9.3f}  {np.linalg.eigvalsh(found)[0]:>10.4f}")
        lines.append(f"{count:>7}  {'  '.join(cells)}")
    return "\n".join(lines)


def running_covariance(parts: list[Array]) -> Array:
    """A running second moment that loses the running mean's outer product after every batch, not once at the end."""
    size = parts[0].shape[1]
    second, mean, seen = np.zeros((size, size)), np.zeros(size), 0
    for part in parts:
        total = seen + len(part)
        mean = (seen * mean + part.sum(axis=0)) / total
        second = (seen * second + part.T @ part) / total - np.outer(mean, mean)
        seen = total
    return second


# -- 3. what is left of a removed unit ---------------------------------------------------------------------------------


def leftovers() -> str:
    rng = np.random.default_rng(0)
    units, inputs, outputs = 32, 8, 4
    weights = {
        "w_ih": rng.normal(size=(4, units, inputs)) / np.sqrt(inputs),
        "w_hh": rng.normal(size=(4, units, units)) / np.sqrt(units),
        "bias": 0.5 * rng.normal(size=(4, units)),
        "out": rng.normal(size=(outputs, units)) / np.sqrt(units),
    }
    sequence = rng.normal(size=(50, 64, inputs))
    lines = [
        "3. Output of an LSTM against the one from which the units are really gone, as a share of its size",
        f"{'removed':>7}  {'rows zero':>9}  {'their mean |h|':>14}  {'biases zero too':>15}  {'columns zero':>12}",
    ]
    for count in (8, 16, 24):
        gone = np.sort(rng.permutation(units)[:count])
        stay = np.setdiff1d(np.arange(units), gone)
        without, _ = lstm(sliced(weights, stay), sequence)
        left, states = lstm(zeroed(weights, gone, "w_ih", "w_hh"), sequence)
        silent, _ = lstm(zeroed(weights, gone, "w_ih", "w_hh", "bias"), sequence)
        columns_zero, _ = lstm(unread(weights, gone), sequence)
        errors = [np.linalg.norm(found - without) / np.linalg.norm(without) for found in (left, silent, columns_zero)]
        response = np.abs(states[:, :, gone]).mean()
        lines.append(
            f"{count / units:>7.0%}  {errors[0]:>9.3f}  {response:>14.3f}  {errors[1]:>15.3f}  {errors[2]:>12.3f}"
        )
    return "\n".join(lines)


Weights = Mapping[str, Array]


def lstm(weights: Weights, sequence: Array) -> tuple[Array, Array]:
    """Outputs (time × batch × outputs) and hidden states (time × batch × units); gates in the order i, f, g, o."""
    units = weights["bias"].shape[1]
    hidden = cell = np.zeros((sequence.shape[1], units))
    states = []
    for step in sequence:
        gates = [
            step @ weights["w_ih"][gate].T + hidden @ weights["w_hh"][gate].T + weights["bias"][gate]
            for gate in range(4)
        ]
        insert, forget, emit = (1 / (1 + np.exp(-gates[gate])) for gate in (0, 1, 3))
        cell = forget * cell + insert * np.tanh(gates[2])
        hidden = emit * np.tanh(cell)
        states.append(hidden)
    stacked = np.stack(states)
    return stacked @ weights["out"].T, stacked


def sliced(weights: Weights, stay: NDArray[np.int64]) -> Weights:
    return {
        "w_ih": weights["w_ih"][:, stay],
        "w_hh": weights["w_hh"][:, stay][:, :, stay],
        "bias": weights["bias"][:, stay],
        "out": weights["out"][:, stay],
    }


def zeroed(weights: Weights, gone: NDArray[np.int64], *names: str) -> Weights:
    """The units' own entries of the named weights are zero; the columns that read them stay as they were."""
    changed = {name: weight.copy() for name, weight in weights.items()}
    for name in names:
        changed[name][:, gone] = 0.0
    return changed


def unread(weights: Weights, gone: NDArray[np.int64]) -> Weights:
    """No column reads the units; their own entries stay as they were."""
    changed = {name: weight.copy() for name, weight in weights.items()}
    changed["w_hh"][:, :, gone] = 0.0
    changed["out"][:, gone] = 0.0
    return changed


if __name__ == "__main__":
    main()
