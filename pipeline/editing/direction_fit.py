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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.editing.directions import Direction
from pipeline.editing.labels import FOLDS, LabelledCodes, Labels
from pipeline.errors import ConfigError, RequestError
from pipeline.table.schema import STYLE_DIM

Method = Literal["mean", "ridge", "logistic"]
Space = Literal["w", "w+"]
Numbers = NDArray[np.float64]

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


class Samples(Protocol):
    """Labelled codes that can be read more than once."""

    def blocks(self) -> Iterator[Block]:
        """Yield all codes in blocks, in the same order each time."""
        ...


@dataclass
class Moments:
    """Sums over the codes of one fold: of x, y, x·y, y² and, for the ridge fit, x·xᵀ per row."""

    rows: int
    with_products: bool
    count: int = 0
    y: float = 0.0
    yy: float = 0.0
    x: Numbers = field(init=False)
    xy: Numbers = field(init=False)
    xx: Numbers | None = field(init=False)

    def __post_init__(self) -> None:
        self.x = np.zeros((self.rows, STYLE_DIM))
        self.xy = np.zeros((self.rows, STYLE_DIM))
        self.xx = np.zeros((self.rows, STYLE_DIM, STYLE_DIM)) if self.with_products else None

    def add(self, codes: Numbers, labels: Numbers) -> None:
        """Add codes [n, rows, 512] with their labels [n]."""
        self.count += len(labels)
        self.y += float(labels.sum())
        self.yy += float(labels @ labels)
        self.x += codes.sum(axis=0)
        self.xy += np.einsum("n,nrd->rd", labels, codes)
        if self.xx is not None:
            for row in range(self.rows):
                self.xx[row] += codes[:, row].T @ codes[:, row]

    def __add__(self, other: Moments) -> Moments:
        total = Moments(self.rows, self.with_products)
        for each in (self, other):
            total.count += each.count
            total.y, total.yy = total.y + each.y, total.yy + each.yy
            total.x, total.xy = total.x + each.x, total.xy + each.xy
            if total.xx is not None and each.xx is not None:
                total.xx += each.xx
        return total

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
        assert self.xx is not None
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
    with _samples(labels, reference, whole=whole) as samples:
        folds = [Moments(rows, settings.method != "mean") for _ in range(FOLDS)]
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
        fitting = _Fitting(method, settings, penalty, len(reference), samples)
        scored = _score(samples, fitting.unit(train, held_out=True), binary=binary)
        unit = fitting.unit(train + folds[0], held_out=False)
        used = _use(samples, unit, binary=binary)
    facts = {"method": method, "space": settings.space, **facts, **used, "score": scored}
    return Fit(unit, facts)


def project(codes: Numbers, rows: Numbers) -> Numbers:
    """Return how far codes [n, k, 512] lie along a direction [k, 512], in units of a strength."""
    flat = rows.reshape(-1)
    return np.asarray(codes.reshape(len(codes), -1) @ flat / (flat @ flat))


class _Reread:
    """Codes of W+, read from the table for each pass."""

    def __init__(self, labels: Labels, reference: Numbers) -> None:
        self._labels, self._reference = labels, reference

    def blocks(self) -> Iterator[Block]:
        for codes, labels, folds in self._labels.batches():
            yield Block(codes - self._reference, labels, folds)


class _Spilled:
    """Codes of W, read from the table once and then from a temporary file."""

    def __init__(self, labels: Labels, reference: Numbers, folder: Path) -> None:
        self._labels, self._reference = labels, reference
        self._path = folder / "codes"
        self._parts: list[tuple[Numbers, NDArray[np.int64]]] | None = None

    def blocks(self) -> Iterator[Block]:
        if self._parts is not None:
            yield from self._stored(self._parts)
            return
        parts = []
        with self._path.open("wb") as sink:
            for batch in self._labels.batches():
                block = self._block(batch)
                sink.write(block.codes.astype(np.float32).tobytes())
                parts.append((block.labels, block.folds))
                yield block
        self._parts = parts

    def _block(self, batch: LabelledCodes) -> Block:
        means = batch.codes.mean(axis=1, dtype=np.float64) - self._reference.mean(axis=0)
        return Block(means.astype(np.float32).astype(np.float64)[:, None], *batch[1:])

    def _stored(self, parts: Sequence[tuple[Numbers, NDArray[np.int64]]]) -> Iterator[Block]:
        with self._path.open("rb") as source:
            for labels, folds in parts:
                content = source.read(4 * STYLE_DIM * len(labels))
                codes = np.frombuffer(content, np.float32).reshape(-1, 1, STYLE_DIM)
                yield Block(codes.astype(np.float64), labels, folds)


@contextmanager
def _samples(labels: Labels, reference: Numbers, *, whole: bool) -> Iterator[Samples]:
    if whole:
        yield _Reread(labels, reference)
        return
    with tempfile.TemporaryDirectory(prefix="restyle-fit-") as folder:
        yield _Spilled(labels, reference, Path(folder))


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


@dataclass(frozen=True)
class _Fitting:
    """Method and penalty of a fit, which is made without the held-out faces and then with all."""

    method: Method
    settings: FitSettings
    penalty: float
    n_styles: int
    samples: Samples

    def unit(self, moments: Moments, *, held_out: bool) -> Numbers:
        """Fit to faces of these moments, without fold 0 if `held_out`; of mean square length 1."""
        if self.method == "mean":
            rows = moments.covariance_with_label / moments.label_variance
        elif self.method == "ridge":
            rows = _Ridge(moments).weights(self.penalty)
        else:
            # The logistic loss is a quarter as curved as the squared one.
            absolute = self.penalty * _scale(moments) * moments.count / 4
            rows = _logistic(self.samples, moments, absolute, first_fold=int(held_out))
        rows = _orthogonal(rows, self.settings.orthogonal_to, self.n_styles)
        return np.asarray(rows / np.sqrt((rows**2).sum(axis=1).mean()))


def _scale(moments: Moments) -> float:
    """Return the mean variance of a code's number."""
    traces = [np.trace(moments.scatter(row)) for row in range(moments.rows)]
    return float(np.mean(traces)) / (STYLE_DIM * moments.count)


class _Ridge:
    """Ridge regression of the label on each row of the codes, by one decomposition."""

    def __init__(self, moments: Moments) -> None:
        self._size = _scale(moments) * moments.count
        self._moments = moments
        self._parts = [np.linalg.eigh(moments.scatter(row)) for row in range(moments.rows)]

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


def _logistic(samples: Samples, train: Moments, penalty: float, *, first_fold: int) -> Numbers:
    """Return weights [1, 512] of a logistic regression with an L2 penalty.

    Faces of the folds from `first_fold` on are fitted. Newton's method; a step that does not lower
    the loss is halved.
    """
    loss = _LogisticLoss(samples, train.mean[0], penalty, first_fold)
    odds = train.y / train.count
    weights = np.zeros(STYLE_DIM + 1)  # the last is the intercept, which is not penalised
    weights[-1] = np.log(odds / (1 - odds))
    best: Numbers = weights
    step: Numbers = np.zeros_like(weights)
    lowest = np.inf
    for _ in range(_NEWTON_PASSES):
        value, gradient, curvature = loss.terms(weights)
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


@dataclass(frozen=True)
class _LogisticLoss:
    """Loss of a logistic regression over the faces of the folds from `first_fold` on."""

    samples: Samples
    mean: Numbers
    penalty: float
    first_fold: int

    def terms(self, weights: Numbers) -> tuple[float, Numbers, Numbers]:
        """Return loss, gradient and Hessian at `weights` [513]."""
        ridge = np.full(STYLE_DIM + 1, self.penalty)
        ridge[-1] = 0
        loss = 0.5 * float(ridge @ weights**2)
        gradient, curvature = ridge * weights, np.diag(ridge)
        for codes, labels, folds in self.samples.blocks():
            chosen = folds >= self.first_fold
            x = np.append(codes[chosen, 0] - self.mean, np.ones((chosen.sum(), 1)), axis=1)
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


def _projections(samples: Samples, rows: Numbers) -> tuple[Numbers, Numbers, NDArray[np.bool_]]:
    """Return where the faces lie along a direction, their labels, and which are held out."""
    blocks = [(project(codes, rows), labels, folds) for codes, labels, folds in samples.blocks()]
    along, labels, folds = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return along, labels, folds == 0


def _score(samples: Samples, rows: Numbers, *, binary: bool) -> dict[str, float]:
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


def _use(samples: Samples, rows: Numbers, *, binary: bool) -> dict[str, Any]:
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
