"""Tests of the package lora-ft-kernels."""
