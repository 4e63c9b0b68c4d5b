"""crackbatch finds cracked concrete in archives of inspection images and writes one Parquet row per image.

>>> import crackbatch
>>> summary = crackbatch.score("photos/", "results")
>>> crackbatch.read_predictions("results", min_probability=0.9)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crackbatch.datasets.overview import Overview, describe_dataset
    from crackbatch.evaluation.evaluate import Evaluation, evaluate
    from crackbatch.evaluation.photo_calibration import calibrate
    from crackbatch.evaluation.site_check import SiteCheck, site_check
    from crackbatch.models.model import Model, Prediction, load_model
    from crackbatch.models.photo import CrackMap
    from crackbatch.reports.compare_runs import RunComparison, compare_runs
    from crackbatch.reports.exports import Exported, export
    from crackbatch.reports.report import Report, report
    from crackbatch.reports.review import Review, review
    from crackbatch.reports.show import Shown, show
    from crackbatch.results.cleaning import Cleaning, clean
    from crackbatch.results.maps import read_map
    from crackbatch.results.predictions import read_predictions
    from crackbatch.results.states import ListedRun, list_runs
    from crackbatch.results.summary import RunSummary
    from crackbatch.scoring.nightly import Nights, nightly
    from crackbatch.scoring.score import score
    from crackbatch.sources.image import open_image
    from crackbatch.training.compare import Comparison, compare
    from crackbatch.training.train import TrainResult, train

__version__ = "0.1.0"

__all__ = [
    "Cleaning",
    "Comparison",
    "CrackMap",
    "Evaluation",
    "Exported",
    "ListedRun",
    "Model",
    "Nights",
    "Overview",
    "Prediction",
    "Report",
    "Review",
    "RunComparison",
    "RunSummary",
    "Shown",
    "SiteCheck",
    "TrainResult",
    "calibrate",
    "clean",
    "compare",
    "compare_runs",
    "describe_dataset",
    "evaluate",
    "export",
    "list_runs",
    "load_model",
    "nightly",
    "open_image",
    "read_map",
    "read_predictions",
    "report",
    "review",
    "score",
    "show",
    "site_check",
    "train",
]

_HOMES = {
    "calibrate": "evaluation.photo_calibration",
    "clean": "results.cleaning",
    "Cleaning": "results.cleaning",
    "compare": "training.compare",
    "compare_runs": "reports.compare_runs",
    "Comparison": "training.compare",
    "CrackMap": "models.photo",
    "describe_dataset": "datasets.overview",
    "evaluate": "evaluation.evaluate",
    "Evaluation": "evaluation.evaluate",
    "export": "reports.exports",
    "Exported": "reports.exports",
    "list_runs": "results.states",
    "ListedRun": "results.states",
    "load_model": "models.model",
    "Model": "models.model",
    "nightly": "scoring.nightly",
    "Nights": "scoring.nightly",
    "open_image": "sources.image",
    "Overview": "datasets.overview",
    "read_map": "results.maps",
    "read_predictions": "results.predictions",
    "Prediction": "models.model",
    "Report": "reports.report",
    "report": "reports.report",
    "Review": "reports.review",
    "review": "reports.review",
    "RunComparison": "reports.compare_runs",
    "RunSummary": "results.summary",
    "score": "scoring.score",
    "show": "reports.show",
    "Shown": "reports.show",
    "site_check": "evaluation.site_check",
    "SiteCheck": "evaluation.site_check",
    "train": "training.train",
    "TrainResult": "training.train",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import crackbatch` does not load torch or ray."""
    if name not in _HOMES:
        raise AttributeError(f"module 'crackbatch' has no attribute {name!r}")
    return getattr(import_module(f"crackbatch.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
