"""The server on a cluster: replicas, the request that reaches them, and what happens when one dies. No torch."""
