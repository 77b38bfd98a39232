"""Measurements that can be trusted: engines in processes of their own, interleaved, compared by ratio."""
