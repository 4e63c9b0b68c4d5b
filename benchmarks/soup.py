"""Averages the weights of models that began from the same one, and calibrates the average on the validation split.

    python benchmarks/soup.py build/a build/b --data metu.zip 'sdnet*.tar' --split build/split/split.parquet --out OUT

Models from one start lie in one valley of the loss, so their average is often better than each (Wortsman et al. 2022,
Model soups). It prints the validation loss of each model and of the average.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors.torch

from crackbatch.datasets.dataset import read_dataset, with_given_split
from crackbatch.datasets.pixels import number_rows, stream_pixels
from crackbatch.evaluation.inference import logits_here
from crackbatch.models.bundle import Bundle, read_bundle_and_weights, write_bundle
from crackbatch.models.model import Model
from crackbatch.models.seen import write_seen
from crackbatch.training.validation import validated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--split", required=True)
    parser.add_argument("--name", default="concrete-resnet18")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    read = [read_bundle_and_weights(model) for model in arguments.models]
    states = [safetensors.torch.load(weights) for _, weights in read]
    averaged = {
        name: (sum(state[name].double() for state in states) / len(states)).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }
    out = str(arguments.out.absolute())
    training = {**read[0][0].training, "averaged": [model.model_id for model, _ in read]}
    bundle = replace(read[0][0], location=out, name=arguments.name, training=training)
    weights = safetensors.torch.save({name: value.contiguous() for name, value in averaged.items()})
    with tempfile.TemporaryDirectory() as scratch:
        dataset = with_given_split(read_dataset(arguments.data, scratch=scratch), arguments.split)
        rows = dataset.part("validation")
        labels = np.asarray(rows.column("label")).astype(np.int64)
        groups = np.asarray(rows.column("group").to_pylist(), dtype=object).astype(str)

        def score(model: Bundle, tensors: bytes) -> np.ndarray:
            logits = logits_here(stream_pixels(number_rows(rows), model.input_size), Model(model, tensors))
            loss = np.logaddexp(0, -(2 * labels - 1) * logits.astype(np.float64) / model.temperature).mean()
            print(f"{model.name}: loss at temperature {model.temperature:.3f} {loss:.4f}", flush=True)
            return logits

        for one in read:
            score(*one)
        bundle = validated(bundle, weights, None, score, labels, groups)
        score(bundle, weights)
    write_seen(out, *(dataset.table.column(name).to_pylist() for name in ("sha256", "split")), {})
    write_bundle(bundle, weights)


if __name__ == "__main__":
    main()
