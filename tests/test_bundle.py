"""A bundle is read whole and as it was written, or refused in one line; nothing in it is executed."""

from __future__ import annotations

import json
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import crackbatch
from crackbatch.cli.demo import draw_tile
from crackbatch.errors import BundleError
from crackbatch.images.picture import read_image, to_input
from crackbatch.models.bundle import (
    DEFAULT_MODEL,
    absolute,
    read_bundle,
    read_bundle_and_weights,
    shipped_models,
    write_bundle,
)
from crackbatch.models.model import Model, build_network, load_model

SHIPPED = Path(crackbatch.__file__).parent / "models" / DEFAULT_MODEL


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "bundle"))


def test_the_shipped_model_is_there_and_named_after_its_weights() -> None:
    assert DEFAULT_MODEL in shipped_models()
    found = read_bundle()
    assert found.model_id == f"{DEFAULT_MODEL}@{found.weights_sha256[:12]}"
    assert (SHIPPED / "model.safetensors").stat().st_size <= 23e6


def edit(bundle: Path, **changes: object) -> None:
    description = json.loads((bundle / "model.json").read_text())
    (bundle / "model.json").write_text(json.dumps({**description, **changes}))


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda bundle: shutil.rmtree(bundle), "no model at"),
        (lambda bundle: (bundle / "model.json").write_text("{"), "not JSON"),
        (lambda bundle: edit(bundle, format_version=99), "format_version 99"),
        (lambda bundle: edit(bundle, mean=[1]), "incomplete or wrong"),
        (lambda bundle: edit(bundle, input_size=None), "incomplete or wrong"),
        (lambda bundle: edit(bundle, input_size=0), "not from 16 to 4096"),
        (lambda bundle: edit(bundle, temperature=0), "not above 0"),
        (lambda bundle: edit(bundle, operating_points={"balanced": {"threshold": "high"}}), "is no probability"),
        (lambda bundle: (bundle / "model.json").write_text("[" * 100_000), "not JSON"),
        (lambda bundle: (bundle / "model.safetensors").unlink(), "no model at"),
        (lambda bundle: (bundle / "model.safetensors").write_bytes(pickle.dumps(Bomb())), "not a safetensors file"),
        (lambda bundle: (bundle / "model.safetensors").open("ab").write(b"x"), "not the file that"),
    ],
)
def test_a_bad_bundle_is_refused_in_one_line(bundle: Path, damage, message: str) -> None:
    damage(bundle)
    with pytest.raises(BundleError, match=message) as raised:
        read_bundle(str(bundle))
    assert "\n" not in str(raised.value)
    assert not Path("exploded").exists()


def test_weights_of_another_network_are_refused(bundle: Path) -> None:
    edit(bundle, network="resnet34")
    with pytest.raises(BundleError, match="do not fit a resnet34"):
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
    model = Model(found, weights)
    assert np.abs(model.probability(model.logits(pixels) * found.temperature) - expected).max() < 1e-4


def test_float16_on_disk_and_bfloat16_at_work_change_no_probability_by_a_hundredth(shared_data: Path) -> None:
    """The second is what a GPU computes in; here the same network is run so on the CPU."""
    import torch
    from safetensors.torch import load, save

    bundle, weights = read_bundle_and_weights()
    with zipfile.ZipFile(shared_data / "metu.zip") as metu, tarfile.open(shared_data / "sdnet.tar") as sdnet:
        data = [metu.read(name) for name in metu.namelist()[::400]]
        data += [sdnet.extractfile(member).read() for member in sdnet.getmembers()[::200] if member.isfile()]
    pixels = np.stack([to_input(read_image(item), bundle.input_size) for item in data])
    model = Model(bundle, weights)
    expected = model.probability(model.logits(pixels))
    random = torch.Generator().manual_seed(0)
    full = {name: value.float() if value.is_floating_point() else value for name, value in load(weights).items()}
    for value in full.values():  # as float32 weights are before they are rounded: about half a step away
        if value.is_floating_point():
            value *= 1 + (torch.rand(value.shape, generator=random) - 0.5) * 2**-11
    unrounded = Model(bundle, save(full))
    assert np.abs(unrounded.probability(unrounded.logits(pixels)) - expected).max() < 0.01
    short = Model(bundle, weights, bfloat16=True)
    assert np.abs(short.probability(short.logits(pixels)) - expected).max() < 0.01


def _file(index: int):
    import io

    return io.BytesIO(draw_tile(index, cracked=True))


def test_predict_takes_paths_arrays_and_pictures_and_says_none_for_what_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(draw_tile(1, True))
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    picture = PIL.Image.open(tmp_path / "a.jpg")
    found = load_model().predict([tmp_path / "a.jpg", tmp_path / "bad.jpg", np.asarray(picture), picture, "gone.jpg"])
    assert found[1] is None
    assert found[4] is None
    assert found[0] == pytest.approx(found[2], abs=1e-5) == pytest.approx(found[3], abs=1e-5)


def test_a_bundle_that_is_written_anew_is_whole_for_who_reads_it(bundle: Path) -> None:
    found, weights = read_bundle_and_weights(str(bundle))
    with open(bundle / "model.safetensors", "rb") as opened:
        write_bundle(found, weights[:-2] + b"xx")
        assert opened.read() == weights
    assert read_bundle(str(bundle)).weights_sha256 != found.weights_sha256


@pytest.mark.parametrize(
    ("location", "expected"),
    [("concrete-resnet18", "concrete-resnet18"), ("none", "none"), ("models/a", "{here}/models/a"),
     ("s3://b/a/", "s3://b/a")],
)  # fmt: skip
def test_a_location_means_the_same_everywhere(location: str, expected: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute(location, ["none"]) == expected.format(here=tmp_path)


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
    assert model.predict([PIL.Image.open(file) for file in files]) == model.predict(files)
