"""Adapters between eugen_nerf and nerfstudio; the only package that imports nerfstudio."""
