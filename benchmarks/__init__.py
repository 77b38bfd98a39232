"""Measurements that can be trusted: engines in processes of their own, interleaved, compared by ratio."""

from lora_ft.export.telemetry import opt_out

opt_out()
