"""Adapters between eugen_nerf and nerfstudio."""
