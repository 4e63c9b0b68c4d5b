"""Says whether a model works at a new site, from 50 to 200 labelled images of it, and how many more would settle it."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from crackbatch.datasets.dataset import read_dataset, read_encoded
from crackbatch.datasets.labels import LabelRules
from crackbatch.errors import OptionError
from crackbatch.evaluation.calibration import (
    FEW_ERRORS,
    choose_operating_points,
    fit_temperature,
    num_errors,
    write_calibrated,
)
from crackbatch.evaluation.metrics import Metric, Scored, measure
from crackbatch.evaluation.unseen import choose_unseen
from crackbatch.images.picture import read_image
from crackbatch.models.bundle import (
    DEFAULT_MODEL,
    DEFAULT_OPERATING_POINT,
    Bundle,
    OperatingPoint,
    calibrated,
    read_bundle_and_weights,
    uncalibrated,
)
from crackbatch.models.model import Model, Prediction, default_device
from crackbatch.progress import Step, counted
from crackbatch.sources.listing import check_sources
from crackbatch.storage import atomic, locations

FEWEST = 10  # cracked images, and sound images, below which nothing is said
_MOST_FURTHER = 5_000
_FOLDS = 5
_Z = 1.96  # of a 95 % interval
_BATCH = 8


@dataclass(frozen=True)
class Figures:
    """Recall and false alarm rate at a threshold, with 95 % intervals."""

    threshold: float
    recall: Metric
    false_alarm_rate: Metric
    num_cracked: int
    num_sound: int


@dataclass(frozen=True)
class Kind:
    """What was found about the tiles of a site, or about its photographs.

    `as_it_is` is at the threshold of the model, `at_site` at a threshold chosen on these images and measured on those
    of other groups. They, `precision` and `roc_auc` are None if there are too few images. `temperature` is of the site,
    None if the images are too few or too easy. `verdict` is a sentence. `further` counts the labels that would settle
    it, by class, and is empty if nothing is open.
    """

    name: str
    images: int
    cracked: int
    groups: int
    verdict: str
    works: bool | None
    as_it_is: Figures | None = None
    at_site: Figures | None = None
    precision: Metric | None = None
    roc_auc: Metric | None = None
    temperature: float | None = None
    further: dict[str, int] | None = None


@dataclass(frozen=True)
class SiteCheck:
    """What was found about each kind of image, the model, the targets, and the images that were left out."""

    model_id: str
    min_recall: float
    max_false_alarms: float
    kinds: list[Kind]
    left_out: dict[str, int]
    unreadable: int
    bundle: str | None = None


class _Site(NamedTuple):
    scored: Scored
    logits: np.ndarray  # (images,)


def site_check(
    sources: locations.Location | Sequence[locations.Location],
    *,
    model: locations.Location = DEFAULT_MODEL,
    out: locations.Location | None = None,
    threshold: float | None = None,
    operating_point: str | None = None,
    min_recall: float = 0.9,
    max_false_alarms: float = 0.1,
    positive: Sequence[str] = (),
    negative: Sequence[str] = (),
    group_pattern: str | None = None,
    group_column: str = "group",
) -> SiteCheck:
    """Measure a model on labelled images of a site, and say whether it works there.

    It works if it finds at least the share `min_recall` of the cracked images and flags at most the share
    `max_false_alarms` of the sound ones. Photographs are looked at in windows, as `score` does. With `out`, a copy of
    the model with the temperature and the `balanced` threshold of the site's tiles is written. Raises RequestError.
    """
    for name, value in (("--min-recall", min_recall), ("--max-false-alarms", max_false_alarms)):
        if not 0 < value < 1:
            raise OptionError(f"{name} must be above 0 and below 1, got {value:g}")
    names = check_sources(sources)
    rules = LabelRules(tuple(positive), tuple(negative), group_pattern, group_column)
    bundle, weights = read_bundle_and_weights(os.fspath(model))
    lines = {"tiles": bundle.draw_line(threshold, operating_point)}
    lines["photographs"] = bundle.draw_photo_line(threshold, operating_point)
    location = None if out is None else atomic.check_output(os.fspath(out))
    with tempfile.TemporaryDirectory(prefix="crackbatch-site-check-") as scratch:
        dataset = read_dataset(names, rules, scratch)
        rows, left_out = choose_unseen(dataset, bundle)
        sites = _score(rows, Model(bundle, weights, default_device()))
    targets = (min_recall, max_false_alarms)
    kinds = [judge_kind(name, *site, lines[name], targets) for name, site in sites.items()]
    unreadable = sum(dataset.report.unreadable.values())
    found = SiteCheck(bundle.model_id, *targets, kinds, left_out, unreadable)
    if location is None:
        return found
    tiles = next((kind for kind in kinds if kind.name == "tiles"), None)
    if tiles is None or tiles.at_site is None:
        raise OptionError("--out needs enough labelled tiles to choose a threshold on; label more, or leave it out")
    return replace(found, bundle=_write(bundle, weights, location, sites["tiles"], tiles).location)


def _score(rows: pa.Table, model: Model) -> dict[str, _Site]:
    """Return the tiles and the photographs of the rows, those that are there."""
    predictions = list[Prediction]()
    with Step("scoring", lambda: f" {len(predictions)} of {counted(rows.num_rows, 'image')}"):
        for batch in read_encoded(rows, _BATCH):
            predictions += model.predict_pictures([read_image(image.data or b"") for image in batch])
    is_photo = np.array([said.is_photograph for said in predictions], bool)
    is_scored = np.array([said.probability is not None for said in predictions], bool)
    probabilities = np.array([said.probability or 0.0 for said in predictions], np.float32)
    groups = np.asarray(rows.column("group").to_pylist(), dtype=object).astype(str)
    scored = Scored(probabilities, np.asarray(rows.column("label")).astype(np.int64), groups)
    logits = uncalibrated(probabilities) * model.bundle.temperature
    chosen = {"tiles": is_scored & ~is_photo, "photographs": is_scored & is_photo}
    return {name: _Site(scored.where(mask), logits[mask]) for name, mask in chosen.items() if mask.any()}


def judge_kind(name: str, scored: Scored, logits: np.ndarray, line: float, targets: tuple[float, float]) -> Kind:
    """Return what images of one kind show, at a threshold. `targets` are the least recall and most false alarms."""
    cracked, groups = int(scored.labels.sum()), len(set(scored.groups.tolist()))
    sound = len(scored.labels) - cracked
    kind = Kind(name, len(scored.labels), cracked, groups, "", None)
    further = {label: FEWEST - num for label, num in (("cracked", cracked), ("sound", sound)) if num < FEWEST}
    if further:
        more = " and ".join(f"{num} more {label}" for label, num in further.items())
        verdict = f"too few images to say anything: label at least {more} {name}"
        return replace(kind, verdict=verdict, further=further)
    metrics = measure(scored, line)
    as_it_is = _figures(scored, scored.probabilities >= np.float32(line), line)
    at_site = _choose_threshold(scored)
    works, verdict, further = _verdict(name, as_it_is, at_site, targets)
    temperature = None
    if name == "tiles" and num_errors(logits, scored.labels) >= FEW_ERRORS:
        temperature = fit_temperature(logits, scored.labels)
    return replace(
        kind, verdict=verdict, works=works, as_it_is=as_it_is, at_site=at_site, precision=metrics["precision"],
        roc_auc=metrics["roc_auc"], temperature=temperature, further=further,
    )  # fmt: skip


def _figures(scored: Scored, flagged: np.ndarray, line: float) -> Figures:
    """Return recall and false alarm rate of images (images,) that are flagged or not."""
    is_cracked = scored.labels == 1
    recall, alarms = (_rate(flagged[mine], scored.groups[mine]) for mine in (is_cracked, ~is_cracked))
    return Figures(line, recall, alarms, int(is_cracked.sum()), int((~is_cracked).sum()))


def _rate(hits: np.ndarray, groups: np.ndarray) -> Metric:
    """Return the share of hits (images,) bool, with an interval.

    It is the wider one of the bootstrap over groups, which is empty if all or none are hits, and Wilson's score
    interval (Wilson 1927), which knows nothing of groups.
    """
    found = measure(Scored(hits.astype(np.float32), np.ones(len(hits), np.int64), groups), 0.5)["recall"]
    num, share = len(hits), float(hits.mean())
    centre = (share + _Z**2 / (2 * num)) / (1 + _Z**2 / num)
    half = _Z * math.sqrt(share * (1 - share) / num + _Z**2 / (4 * num**2)) / (1 + _Z**2 / num)
    bounds = [max(0.0, centre - half), min(1.0, centre + half)]
    if math.isfinite(found.low):  # several groups
        bounds += [found.low, found.high]
    return Metric(share, min(bounds), max(bounds))


def _choose_threshold(scored: Scored) -> Figures | None:
    """Return the threshold that suits the site, measured on groups that it was not chosen on; None for one group."""
    names, codes = np.unique(scored.groups, return_inverse=True)
    num_folds = min(_FOLDS, len(names))
    if num_folds < 2:
        return None
    folds = np.random.default_rng(0).permutation(len(names))[codes] % num_folds
    flagged = np.zeros(len(codes), bool)
    for fold in range(num_folds):
        rest = scored.where(folds != fold)
        if len(set(rest.labels.tolist())) < 2:
            return None
        flagged[folds == fold] = scored.probabilities[folds == fold] >= np.float32(_balanced(rest).threshold)
    return _figures(scored, flagged, _balanced(scored).threshold)


def _balanced(scored: Scored) -> OperatingPoint:
    return choose_operating_points(scored.probabilities, scored.labels)[DEFAULT_OPERATING_POINT]


def _verdict(
    name: str, as_it_is: Figures, at_site: Figures | None, targets: tuple[float, float]
) -> tuple[bool | None, str, dict[str, int]]:
    """Return whether the model works, the verdict, and how many further labels would settle it."""
    if _meets(as_it_is, targets):
        return True, f"the model works as it is: {_said(name, as_it_is)}", {}
    if at_site is not None and _meets(at_site, targets):
        return True, f"the model works with --threshold {at_site.threshold:.3f}: {_said(name, at_site)}", {}
    misses = _misses(as_it_is, targets)
    if misses and (at_site is None or _misses(at_site, targets)):
        return (
            False,
            f"the model does not work here: {_said(name, as_it_is)}; train it further on labels of this site",
            {},
        )
    further = _further(at_site if at_site is not None and misses else as_it_is, targets)
    more = " and ".join(
        f"{'more than' if num > _MOST_FURTHER else 'about'} {min(num, _MOST_FURTHER):,} more {kind} {name}"
        for kind, num in further.items()
    )
    return None, f"not settled: {_said(name, as_it_is)}; labels of {more} would settle it", further


def _meets(figures: Figures, targets: tuple[float, float]) -> bool:
    return figures.recall.low >= targets[0] and figures.false_alarm_rate.high <= targets[1]


def _misses(figures: Figures, targets: tuple[float, float]) -> bool:
    return figures.recall.high < targets[0] or figures.false_alarm_rate.low > targets[1]


def _said(name: str, figures: Figures) -> str:
    recall, alarms = figures.recall, figures.false_alarm_rate
    return (
        f"it finds {recall.value:.0%} ({recall.low:.0%}-{recall.high:.0%}) of the cracked {name} and flags"
        f" {alarms.value:.0%} ({alarms.low:.0%}-{alarms.high:.0%}) of the sound ones"
    )


def _further(figures: Figures, targets: tuple[float, float]) -> dict[str, int]:
    """Return how many more images of each class would make the interval narrow enough to tell it from the target.

    The width of an interval falls with the square root of the number of images.
    """
    found = {}
    rates = ((figures.recall, figures.num_cracked), (figures.false_alarm_rate, figures.num_sound))
    for kind, (rate, num), target in zip(("cracked", "sound"), rates, targets, strict=True):
        if rate.low <= target <= rate.high:
            half = rate.value - rate.low if rate.value >= target else rate.high - rate.value
            times = (half / max(abs(rate.value - target), 1e-3)) ** 2
            found[kind] = max(1, math.ceil(num * (times - 1)))
    return found


def _write(bundle: Bundle, weights: bytes, location: str, site: _Site, kind: Kind) -> Bundle:
    temperature = kind.temperature or bundle.temperature
    probabilities = calibrated(site.logits, temperature)
    points = choose_operating_points(probabilities, site.scored.labels)
    changed = replace(bundle, location=location, temperature=temperature, operating_points=points)
    text = (
        f"The temperature and the operating points were chosen on {kind.images:,} labelled tiles of one site,"
        f" {kind.cracked:,} of them cracked. Other sites need others."
    )
    return write_calibrated(changed, bundle.location, weights, "## Site", text)
