"""Train the shipped model: `python jobs/train.py --out BUNDLE ARCHIVE…`."""

import argparse

from crackbatch.training import train

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--out", required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--last-images", type=int, default=8000)
    arguments = parser.parse_args()
    train(arguments.sources, arguments.out, epochs=arguments.epochs, last_images=arguments.last_images)
