"""An HTTP server for bundles and banks: OpenAI's shapes, rows of a task, limits, logs and metrics. No torch."""
