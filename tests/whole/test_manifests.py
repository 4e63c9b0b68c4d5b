"""The Kubernetes manifests are what KubeRay accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from builders.places import ROOT, SHARED

SCHEMAS = SHARED.parent / "schemas" / "kuberay-1.7.0"


def strict(schema: Any) -> Any:
    """The schema with unknown fields refused: as it stands, a misspelt field would be dropped in silence."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if isinstance(closed.get("properties"), dict) and "x-kubernetes-preserve-unknown-fields" not in closed:
        closed.setdefault("additionalProperties", False)
    return closed


@pytest.mark.parametrize("path", sorted((ROOT / "cluster").glob("*.yaml")), ids=lambda path: path.name)
def test_manifests_fit_kuberays_schema(path: Path) -> None:
    if not SCHEMAS.is_dir():
        pytest.skip("the Kubernetes schemas are not here")
    manifest = yaml.safe_load(path.read_text())
    schema_file = SCHEMAS / f"ray.io_{manifest['kind'].lower()}s.yaml"
    definition = yaml.load(schema_file.read_text(), yaml.CSafeLoader)  # of megabytes: Python takes ten seconds
    version = next(
        item for item in definition["spec"]["versions"] if f"ray.io/{item['name']}" == manifest["apiVersion"]
    )
    schema = strict(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    jsonschema.validate(manifest["spec"], schema)
    misspelt = {**manifest["spec"], "shutDownAfterJobFinishes": True}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(misspelt, schema)
