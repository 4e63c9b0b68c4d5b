"""The training job: labelled sources → dataset → epochs, each with a checkpoint → the best epoch as a bundle.

    OUT/model.safetensors model.json MODEL_CARD.md   the bundle, written last
    OUT/seen.parquet                                 digests of the images that it was trained and tuned on
    OUT/metrics.parquet training.png                 one row for each epoch, and the curves
    OUT/split.parquet                                the split of each image
    OUT/training/                                    checkpoints during the training, removed at the end

The same command continues an interrupted training from its last checkpoint. It does not repeat a finished training.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from crackbatch import __version__
from crackbatch.capacity import DEFAULT_MAX_WAIT, Capacity
from crackbatch.cluster import check_address
from crackbatch.datasets.dataset import Dataset, read_listed, with_given_split, with_split
from crackbatch.datasets.labels import LabelRules
from crackbatch.datasets.listing import list_labelled
from crackbatch.datasets.pixels import Pixels, held_or_streamed, marks_of, number_rows, stream_pixels
from crackbatch.datasets.split import SPLITS, write_split
from crackbatch.errors import OptionError, RunError
from crackbatch.evaluation.inference import logits_here, logits_on_ray
from crackbatch.evaluation.plots import plot_training
from crackbatch.machine import library_versions
from crackbatch.models.bundle import DESCRIPTION, Bundle, absolute, read_bundle, write_bundle
from crackbatch.models.card import write_card
from crackbatch.models.model import Model, default_device, runs_bfloat16
from crackbatch.models.seen import splits_of, write_seen
from crackbatch.progress import duration, say
from crackbatch.sources.listing import check_sources
from crackbatch.sources.plan import local_roots
from crackbatch.storage import atomic, locations, objects
from crackbatch.storage.documents import fingerprint_of, read_json, read_table, write_json, write_table
from crackbatch.storage.lease import Holding
from crackbatch.storage.redaction import masked
from crackbatch.storage.retry import giving_up
from crackbatch.training.batches import StreamedBatches, make_batches, stored_size
from crackbatch.training.checkpoints import Checkpoints
from crackbatch.training.initial import WORDS, Initial, bundle_before, initial_network, learnt_before
from crackbatch.training.learner import Figures, Fit, Learner, best_epoch, best_figures, fit
from crackbatch.training.recipe import Recipe
from crackbatch.training.sampling import deal
from crackbatch.training.validation import validated, verdict
from crackbatch.training.workers import fit_on_ray


@dataclass(frozen=True)
class TrainResult:
    """A finished training: its bundle, one dictionary of figures per epoch, and whether this call trained it."""

    bundle: Bundle
    history: list[dict[str, float]]
    trained: bool


@dataclass(frozen=True)
class Where:
    """Where to train: the number of Ray Train workers (0: this process), failures allowed, Ray address and capacity."""

    workers: int
    max_failures: int
    address: str | None
    capacity: Capacity

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise OptionError(f"--workers must be 0 or more, got {self.workers}")
        if self.max_failures < 0:
            raise OptionError(f"--max-failures must be 0 or more, got {self.max_failures}")
        if (gpus := self.capacity.gpus) and gpus != self.workers:
            raise OptionError(f"--gpus {gpus} needs --workers {gpus}, because each worker trains on one GPU")
        check_address(self.address)


def train(
    sources: locations.Location | Sequence[locations.Location],
    out: locations.Location,
    *,
    name: str | None = None,
    network: str = "resnet18",
    init: locations.Location = "imagenet",
    freeze: bool = False,
    epochs: int = 10,
    batch_size: int = 64,
    learning_rate: float | None = None,
    image_size: int = 224,
    seed: int = 0,
    balance: str = "none",
    weights: Mapping[str, float] | None = None,
    augmentation: str = "full",
    positive: Sequence[str] = (),
    negative: Sequence[str] = (),
    group_pattern: str | None = None,
    group_column: str = "group",
    split: locations.Location | None = None,
    workers: int = 1,
    max_failures: int = 3,
    address: str | None = None,
    gpus: int | None = None,
    max_wait: float = DEFAULT_MAX_WAIT,
) -> TrainResult:
    """Train a network on labelled sources and write its bundle to `out`.

    The same call again continues an interrupted training. With 0 workers it trains in this process, else on that many
    workers of Ray Train, on GPUs if the cluster has one for each. With `gpus`, it needs them (0: it works on CPUs
    only), and waits for at most `max_wait` minutes until they are free. Raises RequestError if the request is wrong,
    RunError if the training failed.
    """
    recipe = Recipe(
        network, absolute(os.fspath(init), WORDS), freeze, epochs, batch_size, learning_rate, image_size, seed, balance,
        dict(weights or {}), augmentation,
    )  # fmt: skip
    rules = LabelRules(tuple(positive), tuple(negative), group_pattern, group_column)
    names, given = check_sources(sources), os.fspath(split) if split else None
    where = Where(workers, max_failures, address, Capacity(gpus, max_wait))
    out = os.fspath(out)
    location = atomic.check_output(out)
    folder = locations.join(location, "training")
    made = atomic.missing_folders(folder)
    broken_off = giving_up(lambda why: RunError(f"the training stopped ({why}); run the same command to continue"))
    try:
        with (
            broken_off,
            Holding(folder, f"the training in {masked(out)}"),
            _scratch(folder, workers) as scratch,
        ):
            listed = list_labelled(names, rules, scratch)
            # Load torch and the weights first: an error there shows in seconds, but reading all images may take hours.
            built = initial_network(recipe.network, recipe.init, recipe.image_size, recipe.seed)
            before = learnt_before(recipe.init)
            dataset = read_listed(listed)
            dataset = with_given_split(dataset, absolute(given)) if given else with_split(dataset, seed)
            _check_weights(recipe, dataset)
            said = f"given by {_short(given)}" if given else _describe_draw(dataset, seed)
            named = name or location.rsplit("/", 1)[-1]
            return _train(location, named, recipe, dataset, said, names, built, before, where)
    finally:
        atomic.remove_folders(made)  # only if empty: a refused request leaves nothing behind


@contextmanager
def _scratch(folder: str, workers: int) -> Iterator[str]:
    """A folder for the images of compressed tars: below OUT, where all workers can read it; temporary for 0 workers."""
    if not workers:
        with tempfile.TemporaryDirectory(prefix="crackbatch-train-") as temporary:
            yield temporary
        return
    location = locations.join(folder, "scratch")
    try:
        yield location
    finally:
        objects.remove(location)


def _check_weights(recipe: Recipe, dataset: Dataset) -> None:
    known = set(dataset.table.column("source").to_pylist())
    if unknown := sorted(recipe.weights.keys() - known):
        raise OptionError(f"--weight must name a source of the data ({', '.join(sorted(known))}), got {unknown[0]}")


def _train(
    out: str,
    name: str,
    recipe: Recipe,
    dataset: Dataset,
    split: str,
    sources: Sequence[str],
    built: Initial,
    before: dict[int, str],
    where: Where,
) -> TrainResult:
    """Train the epochs that OUT does not hold yet, and write the bundle."""
    from safetensors.torch import save

    described = {**recipe.describe(), "init": built.origin}
    request = {
        "name": name,
        "recipe": described,
        "split_digest": dataset.digest,
        "labels_digest": dataset.labels_digest,
    }
    fingerprint = fingerprint_of(request)
    folder = locations.join(out, "training")
    if (finished := _finished(out, fingerprint)) is not None:
        objects.remove(folder)  # left by a process that was killed after it wrote the bundle
        return TrainResult(finished, _read_history(out), trained=False)
    images, splits = (dataset.table.column(name).to_pylist() for name in ("sha256", "split"))
    _begin(folder, {"fingerprint": fingerprint, **request})
    write_seen(folder, images, splits, before)
    for line in [*dataset.report.lines(), *_describe(dataset), *_describe_learnt(dataset, before, recipe.init)]:
        say(line)
    rows, train_rows = (number_rows(dataset.part(split)) for split in ("validation", "train"))
    roots = local_roots(dataset.table, sources)
    validation: Callable[[], Iterable[Pixels]] = partial(stream_pixels, rows, recipe.image_size)
    if where.workers:
        history = _fit_on_ray(recipe, train_rows, rows, roots, folder, where)
    else:
        validation = held_or_streamed(validation, marks_of(rows), recipe.image_size, neighbours=1)
        history = _fit_here(recipe, train_rows, validation, built, Checkpoints(folder), where.capacity.gpus)
    data = [_short(source) for source in sources]
    about = {"fingerprint": fingerprint, "recipe": described, "data": data, "split": split}
    bundle = _bundle(out, name, recipe, dataset, history, about)
    state = Checkpoints(folder).best(best_epoch(history))
    weights = save({key: _half(value) for key, value in state.items()})

    def score(model: Bundle, tensors: bytes) -> np.ndarray:
        if where.workers and where.address:
            return logits_on_ray(rows, model, tensors, where.address, roots)
        is_as_trained = model.input_size == recipe.image_size
        blocks = validation() if is_as_trained else stream_pixels(rows, model.input_size)
        return logits_here(blocks, Model(model, tensors, default_device()))

    groups = np.asarray(rows.column("group").to_pylist(), dtype=object).astype(str)
    bundle = validated(bundle, weights, bundle_before(recipe.init), score, marks_of(rows).labels, groups)
    for line in verdict(bundle):
        say(line)
    write_seen(out, images, splits, before)
    write_split(dataset.table, locations.join(out, "split.parquet"))
    _write_history(out, history)
    write_card(bundle)
    write_bundle(bundle, weights)
    objects.remove(folder)
    return TrainResult(bundle, history, trained=True)


def _describe_draw(dataset: Dataset, seed: int) -> str:
    groups = ", ".join(name for name, _ in dataset.report.grouped.most_common())
    return f"drawn with seed {seed}, by group: {groups}"


def _finished(out: str, fingerprint: str) -> Bundle | None:
    """The bundle in OUT if this same training made it, else None; OptionError if another training made it."""
    if not objects.exists(locations.join(out, DESCRIPTION)):
        return None
    bundle = read_bundle(out)
    if bundle.training.get("fingerprint") != fingerprint:
        raise OptionError(f"--out {masked(out)} holds a model made with other data or options; choose another --out")
    return bundle


def _begin(folder: str, request: dict[str, Any]) -> None:
    location = locations.join(folder, "request.json")
    known = read_json(location)
    is_other = known is not None and known.get("fingerprint") != request["fingerprint"]
    if is_other and objects.list_files(folder, ".pt"):  # without a checkpoint there is nothing to keep
        raise OptionError(
            f"{masked(folder)} holds an unfinished training with other data or options; give the same ones to"
            " finish it, choose another --out, or remove the folder"
        )
    if known is None or is_other:
        write_json(location, request)


def _describe(dataset: Dataset) -> list[str]:
    counts = {split: dataset.part(split) for split in SPLITS}
    shown = ", ".join(
        f"{split} {part.num_rows:,} ({int(np.sum(np.asarray(part.column('label')))):,} cracked)"
        for split, part in counts.items()
    )
    return [f"{dataset.table.num_rows:,} images: {shown}"]


def _describe_learnt(dataset: Dataset, before: dict[int, str], init: str) -> list[str]:
    """A warning if held-out images were used to train the model that this training starts from."""
    images, splits = (dataset.table.column(name).to_pylist() for name in ("sha256", "split"))
    held_out = [image for image, split in zip(images, splits, strict=True) if split != "train"]
    if not (num := splits_of(held_out, before).count("train")):
        return []
    return [
        f"warning: {num:,} of {len(held_out):,} held-out images were used to train {masked(init)}, so results will look"
        f" too good; use --split {masked(init)}, or images that are all new to it"
    ]


def _fit_here(
    recipe: Recipe,
    rows: pa.Table,
    validation: Callable[[], Iterable[Pixels]],
    built: Initial,
    checkpoints: Checkpoints,
    gpus: int | None,
) -> list[Figures]:
    """Train in this process."""
    import torch

    device = "cuda" if torch.cuda.is_available() and gpus != 0 else "cpu"
    say(f"training on {device} in {'bfloat16' if runs_bfloat16(device) else 'float32'}")
    stream = partial(stream_pixels, deal(rows, 1, recipe.seed)[0], stored_size(recipe))
    batches = make_batches(recipe, [marks_of(rows)], 0, 1, stream, device)
    if isinstance(batches, StreamedBatches):
        say("the images do not fit in memory, so they are read and decoded again in every epoch")
    learner = Learner(built.network, built.head, recipe, batches.num_steps, device)
    job = Fit(learner, batches, validation, checkpoints, recipe.epochs, workers=1)
    return fit(job, _Reporter(recipe.epochs))


def _fit_on_ray(
    recipe: Recipe, train: pa.Table, validation: pa.Table, roots: Sequence[str], folder: str, where: Where
) -> list[Figures]:
    """Train on workers of Ray Train, unless the checkpoints hold all epochs already."""
    if len(history := _history(folder)) < recipe.epochs:
        fit_on_ray(
            recipe, folder, train, validation, roots, where.workers, where.max_failures, where.address, where.capacity,
            _Reporter(recipe.epochs),
        )  # fmt: skip
        history = _history(folder)
    return history


def _history(folder: str) -> list[Figures]:
    checkpoint = Checkpoints(folder).latest()
    return [] if checkpoint is None else list(checkpoint["history"])


class _Reporter:
    """Prints one line for each epoch."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._began = time.monotonic()
        self._first: float | None = None

    def __call__(self, figures: Figures) -> None:
        self._first = self._first or figures["epoch"]
        done = figures["epoch"] - self._first + 1
        left = (time.monotonic() - self._began) / done * (self._epochs - figures["epoch"])
        say(
            f"epoch {figures['epoch']:.0f} of {self._epochs}: train loss {figures['train_loss']:.4f}, validation loss"
            f" {figures['validation_loss']:.4f}, accuracy {figures['validation_accuracy']:.4f},"
            f" {figures['images_per_s']:.1f} images/s, {duration(left)} left",
            "epoch",
            figures=figures,
            epochs=self._epochs,
        )


def _bundle(
    out: str, name: str, recipe: Recipe, dataset: Dataset, history: list[Figures], about: dict[str, Any]
) -> Bundle:
    mean, std = recipe.normalisation
    return Bundle(
        location=out,
        name=name,
        network=recipe.network,
        input_size=recipe.image_size,
        mean=mean,
        std=std,
        temperature=1.0,
        operating_points={},
        weights_sha256="",
        training={
            **about,
            "images": {split: dataset.part(split).num_rows for split in SPLITS},
            "split_digest": dataset.digest,
            "best": best_figures(history),
            "versions": {"crackbatch": __version__, **library_versions("ray", "torch", "torchvision")},
        },
    )


def _short(source: str) -> str:
    """The last part of a source's path: a bundle should not reveal the folders of a machine."""
    return masked(source).rstrip("/").rsplit("/", 1)[-1]


def _half(value: Any) -> Any:
    return value.half().contiguous() if value.is_floating_point() else value.contiguous()


def _write_history(out: str, history: list[Figures]) -> None:
    write_table(locations.join(out, "metrics.parquet"), pa.Table.from_pylist(history))
    atomic.write_whole(locations.join(out, "training.png"), plot_training(history))


def _read_history(out: str) -> list[Figures]:
    rows: list[Figures] = read_table(locations.join(out, "metrics.parquet")).to_pylist()
    return rows
