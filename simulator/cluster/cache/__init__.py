"""Caches below the engines' own: host memory, SSD and a pool for the whole cluster."""
