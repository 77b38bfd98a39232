"""Foreign input of every kind: an answer or an error of ours, never another exception, a hang or much memory."""
