"""A network gives the same probabilities folded, rounded, and from whatever a picture comes in."""

from __future__ import annotations

import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from builders.models import edit
from crackbatch.cli.demo import draw_tile
from crackbatch.errors import BundleError, OptionError, RunError
from crackbatch.images.picture import read_image, to_input
from crackbatch.models.bundle import calibrated, read_bundle_and_weights
from crackbatch.models.model import Model, Prediction, load_model, runs_bfloat16
from crackbatch.models.networks import build_network


def test_weights_of_another_network_are_refused(bundle: Path) -> None:
    edit(bundle, network="resnet34")
    with pytest.raises(BundleError, match="do not fit the network resnet34"):
        load_model(str(bundle))


def test_folding_changes_no_probability() -> None:
    import torch
    from safetensors.torch import load

    found, weights = read_bundle_and_weights()
    plain = build_network(found.network, found.input_size)
    plain.load_state_dict(load(weights))
    plain.eval()
    pixels = np.stack([np.asarray(PIL.Image.open(_file(index)).resize((224, 224))) for index in range(4)])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (found.mean, found.std))
    with torch.inference_mode():
        expected = torch.softmax(plain((images - mean) / std), 1)[:, 1].numpy()
    model = Model(found, weights, bfloat16=False)
    assert np.abs(model.probability(model.logits(pixels) * found.temperature) - expected).max() < 1e-4


def test_float16_on_disk_and_bfloat16_at_work_hardly_change_a_probability(shared_data: Path) -> None:
    """GPUs compute in bfloat16, and processors that have it; the same network runs so on any CPU."""
    import torch
    from safetensors.torch import load, save

    bundle, weights = read_bundle_and_weights()
    with zipfile.ZipFile(shared_data / "metu.zip") as metu, tarfile.open(shared_data / "sdnet.tar") as sdnet:
        data = [metu.read(name) for name in metu.namelist()[::400]]
        data += [sdnet.extractfile(member).read() for member in sdnet.getmembers()[::200] if member.isfile()]
    pixels = np.stack([to_input(read_image(item), bundle.input_size) for item in data])
    model = Model(bundle, weights, bfloat16=False)
    expected = model.probability(model.logits(pixels))
    random = torch.Generator().manual_seed(0)
    full = {name: value.float() if value.is_floating_point() else value for name, value in load(weights).items()}
    for value in full.values():  # as float32 weights are before they are rounded: about half a step away
        if value.is_floating_point():
            value *= 1 + (torch.rand(value.shape, generator=random) - 0.5) * 2**-11
    unrounded = Model(bundle, save(full), bfloat16=False)
    assert np.abs(unrounded.probability(unrounded.logits(pixels)) - expected).max() < 0.01
    short = Model(bundle, weights, bfloat16=True)
    assert np.abs(short.probability(short.logits(pixels)) - expected).max() < 0.03


def test_only_hardware_that_has_bfloat16_computes_in_it() -> None:
    asked = runs_bfloat16("cpu")
    assert load_model()._bfloat16 is asked
    if not asked:
        assert not any(name in Path("/proc/cpuinfo").read_text() for name in ("avx512_bf16", "amx_bf16"))


def _file(index: int):
    import io

    return io.BytesIO(draw_tile(index, cracked=True))


def test_predict_takes_paths_arrays_and_pictures_and_says_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(draw_tile(1, True))
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    picture = PIL.Image.open(tmp_path / "a.jpg")
    found = load_model().predict([tmp_path / "a.jpg", tmp_path / "bad.jpg", np.asarray(picture), picture, "gone.jpg"])
    assert [prediction.status for prediction in found] == ["ok", "not_an_image", "ok", "ok", "missing"]
    assert found[1] == Prediction(None, None, "not_an_image", "it is a text, not an image")
    assert found[4].error == "gone.jpg does not exist"
    first, *others = (found[place].probability for place in (0, 2, 3))
    assert others == pytest.approx([first, first], abs=1e-5)


def test_predict_gives_a_pillow_image_what_it_gives_its_file(tmp_path: Path) -> None:
    picture = PIL.Image.open(_file(3)).convert("RGB")
    turned, exif = picture.copy(), PIL.Image.Exif()
    turned.paste((200, 200, 200), (0, 0, 227, 60))  # so that up is not down
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    grey = np.asarray(picture.convert("L")).astype(np.uint16) * 257
    PIL.Image.fromarray(grey).save(tmp_path / "sixteen.png")
    faint = picture.convert("RGBA")
    faint.putalpha(PIL.Image.linear_gradient("L").resize(picture.size))
    faint.save(tmp_path / "transparent.png")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "turned.jpg").read_bytes()[:3000])
    files = [tmp_path / name for name in ("turned.jpg", "sixteen.png", "transparent.png", "cut.jpg")]
    model = load_model()
    of_pictures, of_files = (
        [said.probability for said in model.predict(images)] for images in (map(PIL.Image.open, files), files)
    )
    assert of_pictures == of_files
    assert of_files[3] is None


def test_the_most_extreme_logits_have_probabilities_and_nothing_is_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert calibrated(np.array([-1e30, -800, 0, 800, 1e30], np.float32), 0.5).tolist() == [0, 0, 0.5, 1, 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_network_that_gives_no_number_is_refused(value: float) -> None:
    from safetensors.torch import load, save

    bundle, weights = read_bundle_and_weights()
    tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in load(weights).items()}
    tensors["fc.weight"][:] = value
    with pytest.raises(BundleError, match="its network gives no number for a picture; train it again"):
        Model(bundle, save(tensors))


@pytest.mark.parametrize("device", ["gpu", "cuda:x", ""])
def test_a_device_that_does_not_exist_is_one_line(device: str) -> None:
    with pytest.raises(OptionError, match="the device must be cpu, cuda, or cuda:1 for the second GPU, got "):
        load_model(device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_one_line() -> None:
    with pytest.raises(RunError, match=r"no GPU, or it is hidden, for the device 'cuda'; use 'cpu'|GPU that torch"):
        load_model(device="cuda")
