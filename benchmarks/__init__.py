"""Measurements that can be trusted: engines in processes of their own, interleaved, compared by ratio."""

from lora_ft.core.telemetry import opt_out

opt_out()
