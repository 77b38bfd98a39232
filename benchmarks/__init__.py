"""The project's own measurements: studies as commands, and the pages that show their results."""

from lora_ft.core.telemetry import opt_out

opt_out()
