"""Peers with a loop of their own, one file each, which `worker.py` loads in the peer's environment.

A file defines `convert(checkpoint, prepared, precision)` and `load(prepared, precision, threads, provider)`, which
returns an engine (`worker.Loaded`). It imports only the packages of its peer.
"""
