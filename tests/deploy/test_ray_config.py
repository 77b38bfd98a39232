"""The configuration of Ray Serve: it fits Ray's schema, the application and the guide."""

from __future__ import annotations

import re
from dataclasses import fields
from importlib import import_module
from typing import Any

import pytest
import yaml

from lora_ft.core.errors import UsageError
from lora_ft.deploy.cluster_settings import ClusterSettings
from tests.deploy.dockerfile import ROOT, stages, the

CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "deploy/ray-serve.yaml").read_text(encoding="utf-8"))
GUIDE = (ROOT / "docs/guides/deployment.md").read_text(encoding="utf-8")


def test_the_arguments_are_those_of_the_application() -> None:
    [application] = CONFIG["applications"]
    settings = ClusterSettings.of(application["args"])
    assert 1 < settings.min_replicas < settings.max_replicas  # one continues while the other is replaced
    assert CONFIG["http_options"]["request_timeout_s"] > settings.timeout
    assert CONFIG["http_options"]["port"] == int(the(stages()[-1], "EXPOSE").text)


def test_the_file_fits_the_schema() -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="needs lora-ft[ray]")
    deployed = schema.ServeDeploySchema.model_validate(CONFIG)
    allowed = set(schema.ServeApplicationSchema.model_fields)
    assert allowed >= CONFIG["applications"][0].keys()  # the schema would ignore others
    module, name = deployed.applications[0].import_path.split(":")
    assert callable(getattr(import_module(module), name))


def test_the_application_scales_as_its_arguments_say() -> None:
    serve = pytest.importorskip("ray.serve", reason="needs lora-ft[ray]")
    from lora_ft.deploy.ray_serve import Replica, application, replica_options

    options = replica_options(ClusterSettings.of(CONFIG["applications"][0]["args"]))
    assert options["autoscaling_config"] == {
        "min_replicas": 2,
        "max_replicas": 8,
        "target_ongoing_requests": 16,
        "upscale_delay_s": 10,
        "downscale_delay_s": 300,
    }
    assert options["ray_actor_options"] == {"num_cpus": 2, "num_gpus": 0}
    assert options["max_ongoing_requests"] > options["autoscaling_config"]["target_ongoing_requests"]
    serve.deployment(Replica, **options)  # Ray accepts them
    with pytest.raises(UsageError, match="replicas is not an argument"):
        application({"bundles": "bank", "replicas": 2})


def test_the_guide_has_every_argument_and_its_default() -> None:
    documented: dict[str, str] = {}
    for names, _, values in re.findall(r"^\| (`[^|]+) \| ([^|]+) \| ([^|]*)\|$", GUIDE, re.MULTILINE):
        defaults = [value.strip() for value in values.split(",")]
        documented |= dict(zip(re.findall(r"`(\w+)`", names), defaults, strict=True))
    assert list(documented) == [field.name for field in fields(ClusterSettings)]
    settings = ClusterSettings("bank")
    assert all(value == f"{getattr(settings, name):g}" for name, value in documented.items() if value)
