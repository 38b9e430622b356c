"""Fit a direction to labels of a table's faces, and score the fit on faces that were held out.

The score is of a fit without the held-out faces. The direction is then fitted to all of them.

Codes are read once: their moments are added up in float64, by fold of the split, and the fits are
closed forms of the moments. Codes of W (the mean of a code's rows) also go to a temporary file of
2 kB per face, for the passes of the logistic fit and of the score; codes of W+ are read again.

Ridge: Hoerl & Kennard 1970. Logistic: Newton's method (iteratively reweighted least squares).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.choices import Space
from pipeline.editing.directions import Direction
from pipeline.editing.labels import FOLDS, Labels, Numbers
from pipeline.errors import ConfigError, RequestError
from pipeline.table.schema import STYLE_DIM

Method = Literal["mean", "ridge", "logistic"]

# Ridge penalties by cross-validation, relative to the mean variance of a code's number.
PENALTIES = tuple(float(10.0**power) for power in range(-4, 4))
_MIN_FACES = 10
_NEWTON_PASSES = 40
_CONVERGED = 1e-10
_SPANNED = 1e-3  # a remainder of this part of a direction is rounding, not a direction


class Block(NamedTuple):
    """Codes float64 [n, k, 512] relative to a reference, labels [n] and folds [n]."""

    codes: Numbers
    labels: Numbers
    folds: NDArray[np.int64]


@dataclass
class Moments:
    """Sums over the codes of one fold: of 1, y, y², x, x·y and, for the ridge fit, x·xᵀ per row."""

    count: int
    y: float
    yy: float
    x: Numbers  # [rows, 512]
    xy: Numbers
    xx: Numbers  # [rows, 512, 512], or [0, 512, 512] where no fit needs it

    @classmethod
    def zero(cls, rows: int, *, with_products: bool) -> Moments:
        """Return the moments of no codes."""
        products = np.zeros((rows if with_products else 0, STYLE_DIM, STYLE_DIM))
        return cls(0, 0.0, 0.0, np.zeros((rows, STYLE_DIM)), np.zeros((rows, STYLE_DIM)), products)

    def add(self, codes: Numbers, labels: Numbers) -> None:
        """Add codes [n, rows, 512] with their labels [n]."""
        self.count += len(labels)
        self.y += float(labels.sum())
        self.yy += float(labels @ labels)
        self.x += codes.sum(axis=0)
        self.xy += np.einsum("n,nrd->rd", labels, codes)
        for row in range(len(self.xx)):
            self.xx[row] += codes[:, row].T @ codes[:, row]

    def __add__(self, other: Moments) -> Moments:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Moments(*(first + second for first, second in pairs))

    @property
    def mean(self) -> Numbers:
        """Mean code [rows, 512]."""
        return self.x / max(1, self.count)

    @property
    def covariance_with_label(self) -> Numbers:
        """Sum of (x - mean) * (y - mean), [rows, 512]."""
        return self.xy - self.mean * self.y

    @property
    def label_variance(self) -> float:
        """Sum of (y - mean)²."""
        return max(0.0, self.yy - self.y**2 / max(1, self.count))

    def scatter(self, row: int) -> Numbers:
        """Return the sum of (x - mean)(x - mean)ᵀ of one row, [512, 512]."""
        return np.asarray(self.xx[row] - self.count * np.outer(self.mean[row], self.mean[row]))


@dataclass(frozen=True)
class FitSettings:
    """Choices of a fit; `method` None: ridge for numbers, logistic for two classes."""

    method: Method | None = None
    space: Space = "w"
    penalty: float | None = None  # one of `PENALTIES` or any other; None: by cross-validation
    orthogonal_to: tuple[Direction, ...] = ()

    def __post_init__(self) -> None:
        if self.method == "logistic" and self.space == "w+":
            raise ConfigError(
                "--method logistic fits in W: give --space w, or --method ridge or mean"
            )


@dataclass(frozen=True)
class Fit:
    """Fitted rows float64 [1 or n_styles, 512] of mean square length 1, and the card's facts."""

    rows: Numbers
    facts: dict[str, Any]


def fit_direction(labels: Labels, settings: FitSettings, reference: Numbers) -> Fit:
    """Fit a direction to the labelled faces; score a fit to four folds on the fifth.

    `reference` [n_styles, 512] is subtracted from the codes, so that sums stay exact: the average
    latent. Raises `RequestError` if there are too few faces, or only one label.
    """
    whole = settings.space == "w+"
    rows = len(reference) if whole else 1
    with tempfile.TemporaryFile(prefix="restyle-fit-") as file:
        samples = _Samples(labels, reference, None if whole else file)
        with_products = settings.method != "mean"
        folds = [Moments.zero(rows, with_products=with_products) for _ in range(FOLDS)]
        values: set[float] = set()
        first: Numbers | None = None
        differ = False
        for block in samples.blocks():
            first = block.codes[:1] if first is None else first
            differ = differ or bool((block.codes != first).any())
            if len(values) < 3:
                values |= set(np.unique(block.labels)[:3].tolist())
            for fold, moments in enumerate(folds):
                chosen = block.folds == fold
                moments.add(block.codes[chosen], block.labels[chosen])
        binary = values <= {0.0, 1.0}
        train = sum(folds[2:], folds[1])
        _check(folds[0], train, binary=binary, differ=differ)
        method = _method(settings, binary=binary)
        penalty, facts = _penalty(method, settings, folds)
        fit = partial(_unit, samples, method, penalty, settings.orthogonal_to)
        scored = _score(samples, fit(train, first_fold=1), binary=binary)
        unit = fit(train + folds[0], first_fold=0)
        used = _use(samples, unit, binary=binary)
    facts = {"method": method, "space": settings.space, **facts, **used, "score": scored}
    return Fit(unit, facts)


def project(codes: Numbers, rows: Numbers) -> Numbers:
    """Return how far codes [n, k, 512] lie along a direction [k, 512], in units of a strength."""
    flat = rows.reshape(-1)
    return np.asarray(codes.reshape(len(codes), -1) @ flat / (flat @ flat))


@dataclass
class _Samples:
    """Labelled codes, read more than once: those of W+ from the table, those of W from `file`."""

    labels: Labels
    reference: Numbers
    file: IO[bytes] | None  # codes of W, from the first pass on; None: codes of W+
    stored: Sequence[tuple[Numbers, NDArray[np.int64]]] = ()  # labels and folds beside `file`

    def blocks(self) -> Iterator[Block]:
        """Yield all codes in blocks, in the same order each time."""
        if self.file is None:
            for codes, labels, folds in self.labels.batches():
                yield Block(codes - self.reference, labels, folds)
        elif self.stored:
            self.file.seek(0)
            for labels, folds in self.stored:
                content = self.file.read(4 * STYLE_DIM * len(labels))
                yield _block(np.frombuffer(content, np.float32), labels, folds)
        else:
            yield from self._read(self.file)

    def _read(self, file: IO[bytes]) -> Iterator[Block]:
        """Yield the codes of W out of the table, and copy them to the file."""
        stored = []
        for codes, labels, folds in self.labels.batches():
            means = codes.mean(axis=1, dtype=np.float64) - self.reference.mean(axis=0)
            rounded = means.astype(np.float32)
            file.write(rounded.tobytes())
            stored.append((labels, folds))
            yield _block(rounded, labels, folds)
        self.stored = stored


def _block(codes: NDArray[np.float32], labels: Numbers, folds: NDArray[np.int64]) -> Block:
    return Block(codes.astype(np.float64).reshape(-1, 1, STYLE_DIM), labels, folds)


def _method(settings: FitSettings, *, binary: bool) -> Method:
    method = settings.method or ("logistic" if binary and settings.space == "w" else "ridge")
    if method == "logistic" and not binary:
        raise ConfigError(
            "--method logistic needs labels of two classes, 0 and 1: give a condition, as in "
            '--column "yaw > 0.1", or --method ridge'
        )
    return method


def _check(held_out: Moments, train: Moments, *, binary: bool, differ: bool) -> None:
    total = held_out.count + train.count
    if total < _MIN_FACES:
        raise RequestError(f"{total} faces with a label, at least {_MIN_FACES} are needed")
    if not differ:
        raise RequestError(f"the codes of the {total} faces are equal: no direction can be fitted")
    for part, name in ((train, "to fit to"), (held_out, "held out")):
        if not part.count:
            raise RequestError(
                f"none of the {total} faces is {name}: faces of one value of --split-by stay "
                "together, and there are too few values (default: the source images); give another "
                '--split-by, such as "image_id", or another --seed'
            )
        if part.count < 2 or not part.label_variance:
            why = "of one class" if binary else "with one label"
            raise RequestError(
                f"the {part.count} faces {name} are all {why}: choose more faces, another --seed, "
                "or a --split-by of more values"
            )


def _penalty(
    method: Method, settings: FitSettings, folds: Sequence[Moments]
) -> tuple[float, dict[str, Any]]:
    """Return the penalty of a fit, and the facts about its choice."""
    if method == "mean":
        return 0.0, {}
    if settings.penalty is not None:
        return settings.penalty, {"penalty": settings.penalty, "validation_correlation": None}
    penalty, correlation = _cross_validated(folds[1:])
    return penalty, {"penalty": penalty, "validation_correlation": correlation}


def _unit(
    samples: _Samples,
    method: Method,
    penalty: float,
    others: Sequence[Direction],
    moments: Moments,
    *,
    first_fold: int,
) -> Numbers:
    """Fit to faces of the folds from `first_fold` on, with these moments; mean square length 1."""
    if method == "mean":
        rows = moments.covariance_with_label / moments.label_variance
    elif method == "ridge":
        rows = _Ridge(moments).weights(penalty)
    else:
        # The logistic loss is a quarter as curved as the squared one.
        absolute = penalty * _scale(moments) * moments.count / 4
        rows = _logistic(samples, moments, absolute, first_fold)
    rows = _orthogonal(rows, others, len(samples.reference))
    return np.asarray(rows / np.sqrt((rows**2).sum(axis=1).mean()))


def _scale(moments: Moments) -> float:
    """Return the mean variance of a code's number."""
    traces = [np.trace(moments.scatter(row)) for row in range(len(moments.x))]
    return float(np.mean(traces)) / (STYLE_DIM * moments.count)


class _Ridge:
    """Ridge regression of the label on each row of the codes, by one decomposition."""

    def __init__(self, moments: Moments) -> None:
        self._size = _scale(moments) * moments.count
        self._moments = moments
        self._parts = [np.linalg.eigh(moments.scatter(row)) for row in range(len(moments.x))]

    def weights(self, penalty: float) -> Numbers:
        """Return the weights [rows, 512]; the penalty is relative to the codes' variance."""
        right = self._moments.covariance_with_label
        weights = [
            vectors @ ((vectors.T @ right[row]) / (values + penalty * self._size))
            for row, (values, vectors) in enumerate(self._parts)
        ]
        return np.stack(weights)


def _cross_validated(folds: Sequence[Moments]) -> tuple[float, float]:
    """Return the penalty with the best correlation on left-out folds, and that correlation.

    It is computed from the moments, per row of the codes, and averaged. Not R²: a direction has no
    scale, and a fit that shrinks too much may still point the right way.
    """
    scores = np.zeros((len(folds), len(PENALTIES)))
    for place, left_out in enumerate(folds):
        others = [moments for other, moments in enumerate(folds) if other != place]
        train = sum(others[1:], others[0])
        if not left_out.label_variance or not train.label_variance:
            continue
        ridge = _Ridge(train)
        for column, penalty in enumerate(PENALTIES):
            scores[place, column] = _correlation(left_out, ridge.weights(penalty))
    means = scores.mean(axis=0)
    best = int(means.argmax())
    return PENALTIES[best], float(means[best])


def _correlation(moments: Moments, weights: Numbers) -> float:
    """Return the mean correlation, over the rows, of labels and projections on the weights."""
    covariances = moments.covariance_with_label
    correlations = []
    for row, weight in enumerate(weights):
        spread = float(weight @ moments.scatter(row) @ weight) * moments.label_variance
        along = float(weight @ covariances[row])
        correlations.append(along / np.sqrt(spread) if spread > 0 else 0.0)
    return float(np.mean(correlations))


def _logistic(samples: _Samples, train: Moments, penalty: float, first_fold: int) -> Numbers:
    """Return weights [1, 512] of a logistic regression with an L2 penalty.

    Faces of the folds from `first_fold` on are fitted. Newton's method; a step that does not lower
    the loss is halved.
    """
    odds = train.y / train.count
    weights = np.zeros(STYLE_DIM + 1)  # the last is the intercept, which is not penalised
    weights[-1] = np.log(odds / (1 - odds))
    best: Numbers = weights
    step: Numbers = np.zeros_like(weights)
    lowest = np.inf
    for _ in range(_NEWTON_PASSES):
        value, gradient, curvature = _logistic_loss(
            weights, samples, train.mean[0], penalty, first_fold
        )
        if value > lowest * (1 + 1e-12):
            step = np.asarray(0.5 * step)
            weights = best + step
            continue
        best, lowest = weights, value
        step = np.asarray(-np.linalg.solve(curvature, gradient), np.float64)
        if float(-gradient @ step) <= _CONVERGED * train.count:
            break
        weights = best + step
    return best[None, :-1]


def _logistic_loss(
    weights: Numbers, samples: _Samples, mean: Numbers, penalty: float, first_fold: int
) -> tuple[float, Numbers, Numbers]:
    """Return loss, gradient and Hessian at `weights` [513]; the codes are relative to `mean`."""
    ridge = np.full(STYLE_DIM + 1, penalty)
    ridge[-1] = 0
    loss = 0.5 * float(ridge @ weights**2)
    gradient, curvature = ridge * weights, np.diag(ridge)
    for codes, labels, folds in samples.blocks():
        chosen = folds >= first_fold
        x = np.append(codes[chosen, 0] - mean, np.ones((chosen.sum(), 1)), axis=1)
        y, scores = labels[chosen], x @ weights
        loss += float(np.logaddexp(0, scores).sum() - y @ scores)
        probability = 0.5 * (1 + np.tanh(0.5 * scores))
        gradient += x.T @ (probability - y)
        curvature += (x * (probability * (1 - probability))[:, None]).T @ x
    return loss, gradient, curvature


def _orthogonal(rows: Numbers, others: Sequence[Direction], n_styles: int) -> Numbers:
    """Return the rows without their parts along other directions, row by row."""
    if not others:
        return rows
    whole = [other.for_styles(n_styles)[0].astype(np.float64) for other in others]
    if len(rows) == 1 and any(np.ptp(other, axis=0).any() for other in whole):
        raise ConfigError(
            "--orthogonal-to: that direction differs by row: fit with --space w+ to be orthogonal "
            "to it"
        )
    rest = rows.copy()
    for row in range(len(rows)):
        basis, singular, _ = np.linalg.svd(
            np.stack([other[row] for other in whole], axis=1), full_matrices=False
        )
        basis = basis[:, singular > 1e-6 * singular.max(initial=1e-30)]
        rest[row] -= basis @ (basis.T @ rest[row])
    if np.linalg.norm(rest) <= _SPANNED * np.linalg.norm(rows):
        raise RequestError("--orthogonal-to: nothing of the direction is left beside those")
    return rest


def _projections(samples: _Samples, rows: Numbers) -> tuple[Numbers, Numbers, NDArray[np.bool_]]:
    """Return where the faces lie along a direction, their labels, and which are held out."""
    blocks = [(project(codes, rows), labels, folds) for codes, labels, folds in samples.blocks()]
    along, labels, folds = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return along, labels, folds == 0


def _score(samples: _Samples, rows: Numbers, *, binary: bool) -> dict[str, float]:
    """Return how well a direction that was fitted to the others predicts faces held out."""
    along, y, held_out = _projections(samples, rows)
    if binary:
        middle = sum(along[~held_out & (y == label)].mean() for label in (0, 1)) / 2
        right = (along[held_out] > middle) == (y[held_out] == 1)
        return {"accuracy": float(right.mean()), "auc": auc(along[held_out], y[held_out] == 1)}
    slope, intercept = _line(along[~held_out], y[~held_out])
    residual = y[held_out] - slope * along[held_out] - intercept
    variance = float(((y[held_out] - y[held_out].mean()) ** 2).sum())
    spread = np.sqrt(variance * ((along[held_out] - along[held_out].mean()) ** 2).sum())
    together = float((along[held_out] - along[held_out].mean()) @ y[held_out])
    correlation = together / float(spread) if spread else 0.0  # faces of one code
    return {"r2": 1 - float(residual @ residual) / variance, "correlation": correlation}


def _use(samples: _Samples, rows: Numbers, *, binary: bool) -> dict[str, Any]:
    """Return facts by which to choose strengths: the faces' positions along the direction."""
    along, y, held_out = _projections(samples, rows)
    facts: dict[str, Any] = {
        "faces": len(y),
        "held_out": int(held_out.sum()),
        "strength_of_one_deviation": float(along.std()),
        "label_per_strength": _line(along, y)[0],
    }
    if binary:
        low, high = (float(along[y == label].mean()) for label in (0, 1))
        facts |= {"faces_of_class_1": int(y.sum()), "strength_between_classes": high - low}
    return facts


def auc(values: Numbers, positive: NDArray[np.bool_]) -> float:
    """Return the probability that a positive face has a larger value; ties count one half."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    ones = int(positive.sum())
    zeros = len(values) - ones
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def _line(x: Numbers, y: Numbers) -> tuple[float, float]:
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    return slope, float(y.mean() - slope * x.mean())
