"""Loads the network of a bundle and runs its forward pass.

Scoring, evaluation and notebooks all call `Model.logits`. torch and torchvision are imported only when a model is
built, because importing them takes longer than importing everything else together.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crackbatch.errors import BundleError, OptionError, RunError
from crackbatch.images.picture import Picture, to_input
from crackbatch.machine import has_gpu
from crackbatch.models.bundle import DEFAULT_MODEL, Bundle, calibrated, read_bundle_and_weights
from crackbatch.models.dense import Dense
from crackbatch.models.networks import build_network, fold, frame_in_float32, load_tensors
from crackbatch.models.photo import CrackMap, Grid, check_scale_for, judge, photo_side, strips, window_scale
from crackbatch.models.pictures import Image, decode, decode_one
from crackbatch.models.together import Together
from crackbatch.storage import locations
from crackbatch.storage.redaction import masked

if TYPE_CHECKING:
    import torch

# Two threads that each run small batches are faster than one batch spread over two cores. With 8 images of 224 px, the
# activations of a core stay in its cache (benchmarks/LOG.md).
CPU_BATCH_SIZE = 8
CUDA_BATCH_SIZE = 256
# A photograph passes through the network in strips of about so many pixels. On a CPU their activations stay in the
# cache, as those of eight tiles do (benchmarks/LOG.md).
_CPU_STRIP, _CUDA_STRIP = 512 << 10, 8 << 20
# A GPU computes one batch of photographs while another is copied.
_BATCHES_AT_ONCE = 2
# So many threads scale photographs for a GPU.
_CUDA_PHOTO_THREADS = 8


def load_model(location: locations.Location = DEFAULT_MODEL, device: str = "cpu") -> Model:
    """Load a shipped model by name, or a bundle from a path or URL. Raises BundleError."""
    return Model(*read_bundle_and_weights(os.fspath(location)), device)


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    `probability` (of a crack) and `label` (`crack` or `no_crack`) are None unless `status` is `ok`; `error` says why.
    `is_photograph` is set if the image was looked at in windows.
    """

    probability: float | None
    label: str | None
    status: str = "ok"
    error: str | None = None
    is_photograph: bool = False

    @classmethod
    def of(cls, probability: float, line: float, classes: tuple[str, str], is_photograph: bool) -> Prediction:
        """Return the prediction with the label at a threshold; thresholds are applied as float32."""
        label = classes[int(np.float32(probability) >= np.float32(line))]
        return cls(probability, label, is_photograph=is_photograph)


class Model:
    """A network that is ready to score: people call `predict`, pipelines call `logits`.

    Batch normalisation is folded into the convolutions, and memory is channels-last. If the GPU or the processor has
    bfloat16 in hardware, the network runs in bfloat16, except for its first and last layer; the argument `bfloat16`
    overrides this. Several threads may call it at the same time. On a GPU, photographs of several threads share
    batches; the argument `joins_photos` overrides this.
    """

    def __init__(
        self,
        bundle: Bundle,
        weights: bytes,
        device: str = "cpu",
        bfloat16: bool | None = None,
        joins_photos: bool | None = None,
    ) -> None:
        import torch

        check_device(device)
        self.bundle = bundle
        self.device = torch.device(device)
        self._bfloat16 = runs_bfloat16(self.device.type) if bfloat16 is None else bfloat16
        self.batch_size = CPU_BATCH_SIZE if self.device.type == "cpu" else CUDA_BATCH_SIZE
        network = build_network(bundle.network, bundle.input_size)
        _load_weights(network, bundle, weights)
        self.num_parameters = sum(parameter.numel() for parameter in network.parameters())
        self._network = fold(network.eval()).to(self.device).to(memory_format=torch.channels_last)
        frame_in_float32(self._network, self.device.type)
        self._dense: Dense | None = None
        self._dense_lock = threading.Lock()
        joins = self.device.type == "cuda" if joins_photos is None else joins_photos
        self._together = Together(self._map_together, _BATCHES_AT_ONCE) if joins else None
        self._to_input = Normalisation(bundle.mean, bundle.std, self.device)
        self._streams = threading.local()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # the streams of `logits` do not wait for the weights
        grey = np.full((1, bundle.input_size, bundle.input_size, 3), 128, np.uint8)
        if not np.isfinite(self.logits(grey)).all():
            raise BundleError(
                f"model {masked(bundle.location)}: its network gives no number for a picture; train it again"
            )

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """Return crack logits before calibration, (batch,) float32, for RGB pixels (batch, size, size, 3) uint8."""
        import torch

        with torch.inference_mode(), self._precision(), self._own_stream():
            outputs = self._network(self._to_input(pixels)).float()
            crack: np.ndarray = (outputs[:, 1] - outputs[:, 0]).cpu().numpy()
        return crack

    def map_photo(self, pixels: np.ndarray, scale: float, check: Callable[[], None] = lambda: None) -> CrackMap:
        """Return the map of a photograph (height, width, 3) uint8; a pixel of it becomes `scale` pixels of the input.

        `check` is called before each strip, and may raise an error to stop. Raises BundleError for a network that
        cannot look at windows.
        """
        dense = self.dense()
        height, width = pixels.shape[:2]
        grid = Grid.of(width, height, scale, dense.stride, dense.side)
        strip = _CPU_STRIP if self.device.type == "cpu" else _CUDA_STRIP
        if self._together is not None and 2 * grid.width * grid.height <= _CUDA_STRIP:
            (picture,) = strips(pixels, grid, grid.height)
            check()
            logits = self._together(picture, grid, _CUDA_STRIP // (grid.width * grid.height))
        else:
            num_rows = max(1, strip // grid.width // dense.stride) * dense.stride

            def inputs() -> Iterator[np.ndarray]:
                for rows in strips(pixels, grid, num_rows):
                    check()
                    yield rows[None]

            (logits,) = self._dense_logits(inputs())
        step = (dense.stride * width / grid.width, dense.stride * height / grid.height)
        window = (dense.side * step[0], dense.side * step[1])
        return CrackMap(logits, width, height, step, window, self.bundle.temperature)

    def _map_together(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the logits (rows, columns) of each of several pictures (height, width, 3) of the same size."""
        return list(self._dense_logits([np.stack(pictures)]))

    def _dense_logits(self, rows: Iterable[np.ndarray], side: int | None = None) -> np.ndarray:
        """Return the logits (pictures, rows, columns) of pictures in strips of rows (pictures, rows, width, 3)."""
        import torch

        dense = self.dense()
        with torch.inference_mode(), self._precision(), self._own_stream():
            logits: np.ndarray = torch.cat(list(dense.logits(map(self._to_input, rows), side)), 1).cpu().numpy()
        return logits

    def dense(self) -> Dense:
        """Return the network for pictures of any size; raises BundleError if it has none."""
        import torch

        with self._dense_lock, torch.inference_mode(), self._precision():
            if self._dense is None:
                self._dense = Dense(self._network, self.bundle.network, self.bundle.input_size)
            return self._dense

    @property
    def has_maps(self) -> bool:
        """Whether the network can say where a crack is."""
        try:
            self.dense()
        except BundleError:
            return False
        return True

    def probability(self, logits: np.ndarray) -> np.ndarray:
        """Return the calibrated probability of a crack, float32: sigmoid(logit / temperature)."""
        return calibrated(logits, self.bundle.temperature)

    def predict(
        self, images: Iterable[Image], *, threshold: float | None = None, operating_point: str | None = None
    ) -> list[Prediction]:
        """Return what the model says of each image, as `score` does; an image that cannot be read has no probability.

        An image is a path, an `image_uri` of a table, an array (height, width[, 3]) of uint8 or of floats from 0 to 1,
        or a Pillow image. Labels are at the threshold or operating point, by default `balanced`. Raises TypeError for
        a single path, and for what is no image.
        """
        if isinstance(images, (str, Path)):
            raise TypeError(f"predict expects a list of images; use [{str(images)!r}]")
        lines = self._lines(threshold, operating_point)
        coming = decode(images, self.bundle.input_size, photo_side(self.bundle), self.batch_size)
        predictions = list[Prediction]()
        while batch := list(islice(coming, CPU_BATCH_SIZE)):
            predictions.extend(self._predict(batch, lines))
        return predictions

    def predict_pictures(self, pictures: Sequence[Picture]) -> list[Prediction]:
        """Return the same for a few pictures that are decoded already."""
        return self._predict(pictures, self._lines(None, None))

    def map(
        self,
        image: Image,
        *,
        tile_size: float | None = None,
        ground_resolution: float | None = None,
    ) -> CrackMap:
        """Return the map of one image: of a photograph its windows, of a tile the class activation.

        One window covers `tile_size` pixels. If `ground_resolution` is given instead (millimetres of the surface in a
        pixel), a window covers as much of the surface as in training. Raises ValueError if the image cannot be read,
        RequestError for a scale that the model cannot use.
        """
        check_scale_for(self.bundle, tile_size, ground_resolution)
        picture = decode_one(image)
        if picture.status != "ok":
            raise ValueError(f"the image cannot be read: {picture.error}")
        assert picture.pixels is not None
        width, height = picture.pixels.size
        scale = window_scale(self.bundle, width, height, tile_size=tile_size, mm_per_pixel=ground_resolution)
        if scale is not None:
            return self.map_photo(np.array(picture.pixels), scale)
        return self.map_tile(to_input(picture, self.bundle.input_size), width, height)

    def map_tile(self, pixels: np.ndarray, width: int, height: int) -> CrackMap:
        """Return the class activation of a tile of this size, whose pixels (size, size, 3) are scaled to the input."""
        (logits,) = self._dense_logits([np.array(pixels)[None]], side=1)
        step = (width / logits.shape[1], height / logits.shape[0])
        return CrackMap(logits, width, height, step, step, self.bundle.temperature)

    def _lines(self, threshold: float | None, operating_point: str | None) -> tuple[float, float]:
        """Return the thresholds for tiles and for photographs."""
        line = self.bundle.draw_line(threshold, operating_point)
        return line, self.bundle.draw_photo_line(threshold, operating_point)

    def _predict(self, pictures: Sequence[Picture], lines: tuple[float, float]) -> list[Prediction]:
        """Return what the model says of each picture, as scoring does: of photographs from their windows.

        `lines` are the thresholds for tiles and for photographs.
        """
        logits: dict[int, float] = {}
        tiles: dict[int, np.ndarray] = {}
        for place, picture in enumerate(pictures):
            if picture.status != "ok" or picture.pixels is None:
                continue
            scale = window_scale(self.bundle, *picture.pixels.size)
            if scale is not None and self.bundle.photo is not None:
                crack_map = self.map_photo(np.array(picture.pixels), scale)
                logits[place] = judge(crack_map, self.bundle.photo).logit * self.bundle.temperature
            else:
                tiles[place] = to_input(picture, self.bundle.input_size)
        if tiles:
            logits |= dict(zip(tiles, self.logits(np.stack(list(tiles.values()))).tolist(), strict=True))
        probabilities = self.probability(np.array([logits.get(place, 0.0) for place in range(len(pictures))]))
        found = []
        for place, (picture, probability) in enumerate(zip(pictures, probabilities.tolist(), strict=True)):
            if place in logits:
                is_photo = place not in tiles
                found.append(Prediction.of(probability, lines[is_photo], self.bundle.classes, is_photo))
            else:
                found.append(Prediction(None, None, picture.status, picture.error))
        return found

    def _precision(self) -> AbstractContextManager[Any]:
        import torch

        # No cache of converted weights: threads would share it, and a stream could read what another still writes.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16, cache_enabled=False)

    def _own_stream(self) -> AbstractContextManager[Any]:
        """Let a GPU work for this thread while it works for others: it copies one batch and computes another."""
        import torch

        if self.device.type != "cuda":
            return nullcontext()
        if not hasattr(self._streams, "mine"):
            self._streams.mine = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._streams.mine)


class Normalisation:
    """Turns pixels into the network's input: scaled to [0, 1], then `(pixel - mean) / std` for each channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        import torch

        self._device = device
        self._mean = torch.tensor(mean, device=device).mul(255).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device).mul(255).view(1, 3, 1, 1)

    def __call__(self, pixels: np.ndarray) -> torch.Tensor:
        """Return (batch, 3, height, width) float32 on the device, for RGB pixels (batch, height, width, 3) uint8."""
        # torch's channels-last format is NHWC memory viewed as NCHW, so this makes no copy.
        return self.scale(send(pixels, self._device).permute(0, 3, 1, 2).float())

    def scale(self, images: torch.Tensor) -> torch.Tensor:
        """Return the same for images (batch, 3, height, width) from 0 to 255 that are already on the device."""
        return (images - self._mean) / self._std


def send(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy values to a device. A GPU does not stop for it, since they lie in memory that it reads by itself."""
    import torch

    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def default_device() -> str:
    """Return "cuda" if torch can use a GPU here, else "cpu". Importing torch takes long, so first look for a GPU."""
    if not has_gpu():
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def photo_threads(device: str, num_calls: int) -> int:
    """Return how many threads look at photographs for `num_calls` calls at the same time, on "cpu" or "cuda"."""
    return max(_CUDA_PHOTO_THREADS, num_calls) if device.startswith("cuda") else num_calls


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let torch use one core for each call of the network inside: several threads call it at the same time."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_device(device: str) -> None:
    """Raise OptionError for another name than `cpu`, `cuda` and `cuda:1`, RunError if torch cannot use the GPU."""
    import torch

    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise OptionError(f"the device must be cpu, cuda, or cuda:1 for the second GPU, got {device!r}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        if not has_gpu():
            raise RunError(f"this machine has no GPU, or it is hidden, for the device {device!r}; use 'cpu'")
        why = "built without CUDA" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        raise RunError(
            f"machine {socket.gethostname()} has a GPU that torch cannot use: torch {torch.__version__} is {why};"
            " install the torch for its driver, or hide the GPU (CUDA_VISIBLE_DEVICES= or ray start --num-gpus 0)"
        )


def runs_bfloat16(device: str) -> bool:
    """Return whether the device multiplies bfloat16 in hardware: GPUs from Ampere on, CPUs with AVX512-BF16 or AMX."""
    import torch

    if device != "cpu":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch has no public function for this. Without these instructions bfloat16 is emulated, at a fifth of the speed.
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(asked is not None and asked())


def _load_weights(network: torch.nn.Module, bundle: Bundle, weights: bytes) -> None:
    from safetensors.torch import load

    try:
        load_tensors(network, load(weights))
    except Exception as error:  # safetensors and torch raise different exceptions
        first_line = str(error).strip().splitlines()[0]
        raise BundleError(
            f"model {bundle.location}: its weights do not fit the network {bundle.network} ({first_line})"
        ) from None
