"""The files of a cluster are what KubeRay and Ray accept, and agree with each other and with the package."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import typer.main
import yaml

from builders.places import ROOT, SHARED
from crackbatch.cli.commands import app

SCHEMAS = SHARED.parent / "schemas" / "kuberay-1.7.0"
CLUSTER = ROOT / "cluster"
KUBERAY = sorted((CLUSTER / "kuberay").glob("*.yaml"))
MANIFESTS = {path.name: yaml.safe_load(path.read_text()) for path in KUBERAY}
OF_RAY = [name for name, manifest in MANIFESTS.items() if str(manifest.get("apiVersion")).startswith("ray.io/")]
VERSIONS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())


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


def parts(value: Any, key: str) -> list[Any]:
    """Every value of a key, at any depth."""
    if isinstance(value, list):
        return [found for item in value for found in parts(item, key)]
    if not isinstance(value, dict):
        return []
    return [*([value[key]] if key in value else []), *(found for item in value.values() for found in parts(item, key))]


@pytest.mark.parametrize("name", OF_RAY)
def test_manifests_fit_kuberays_schema(name: str) -> None:
    if not SCHEMAS.is_dir():
        pytest.skip("the Kubernetes schemas are not here")
    manifest = MANIFESTS[name]
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


@pytest.mark.parametrize("path", [CLUSTER / "aws.yaml", CLUSTER / "gcp.yaml"], ids=lambda path: path.name)
def test_files_for_ray_up_fit_rays_schema(path: Path) -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    config = yaml.safe_load(path.read_text())
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]
    assert config["available_node_types"]["head"]["resources"]["CPU"] == 0, "no work on the head"


def test_the_version_of_ray_is_that_of_the_constraints() -> None:
    versions = parts(list(MANIFESTS.values()), "rayVersion")
    assert len(versions) == len(OF_RAY)
    assert set(versions) == {VERSIONS["ray"]}
    docker = (CLUSTER / "Dockerfile").read_text()
    assert "--constraint constraints.txt" in docker
    assert not re.search(r"(ray|torch|torchvision)(\[.*\])?==", docker), "versions stand in constraints.txt alone"


def test_what_kustomize_names_is_there_and_what_pods_name_is_made() -> None:
    kustomization = MANIFESTS["kustomization.yaml"]
    assert all((CLUSTER / "kuberay" / name).is_file() for name in kustomization["resources"])
    (generated,) = kustomization["configMapGenerator"]
    assert all((CLUSTER / "kuberay" / name).is_file() for name in generated["files"])
    everything = list(MANIFESTS.values())
    assert {found["name"] for found in parts(everything, "configMap")} == {generated["name"]}
    assert set(parts(everything, "serviceAccountName")) == {MANIFESTS["service-account.yaml"]["metadata"]["name"]}
    assert set(parts([MANIFESTS[name] for name in OF_RAY], "image")) == {
        image["name"] for image in kustomization["images"]
    }
    for pod in (spec for spec in parts(everything, "spec") if "containers" in spec):
        volumes = {volume["name"] for volume in pod["volumes"]}
        mounts = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounts == volumes
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert container["resources"].keys() == {"requests", "limits"}
            assert container["securityContext"]["readOnlyRootFilesystem"]


def test_the_options_of_the_jobs_are_options_of_the_commands() -> None:
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    tables = tomllib.loads((CLUSTER / "kuberay" / "crackbatch.toml").read_text())
    for command, values in tables.items():
        known = {option.lstrip("-") for parameter in commands[command].params for option in parameter.opts}
        assert {name.replace("_", "-") for name in values} <= known
    entrypoints = [entry.split() for entry in parts(list(MANIFESTS.values()), "entrypoint")]
    entrypoints += list(parts(MANIFESTS["cronjob-nightly.yaml"], "args"))
    assert len(entrypoints) == 4
    for words in entrypoints:
        program, option, file, command, *rest = words
        assert (program, option, Path(file).name) == ("crackbatch", "--config", "crackbatch.toml")
        assert command in tables
        assert set(rest) <= {option for parameter in commands[command].params for option in parameter.opts}
