"""eugen-bench: trains nerfstudio methods on scenes, measures quality and speed, and reports the comparison."""
