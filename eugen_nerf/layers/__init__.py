"""EUGen layers, baseline layers, merging and conversion. This package imports nothing but torch."""

from __future__ import annotations

from eugen_nerf.layers.activations import ACTIVATIONS, resolve_activation
from eugen_nerf.layers.baselines import Dense, LowRank, build_network
from eugen_nerf.layers.conversion import Conversion, ConversionPlan, Replacement, convert
from eugen_nerf.layers.eugen import EUGen
from eugen_nerf.layers.merge import FeatureStage, MergedChain, merge_chain
from eugen_nerf.layers.merged_network import MergedNetwork
from eugen_nerf.layers.polynomial import polynomial_eugen, variance_independent, variance_shared
from eugen_nerf.layers.projections import make_projection
from eugen_nerf.layers.snnk import SNNK
from eugen_nerf.layers.stack import LayerStack

__all__ = [
    "ACTIVATIONS",
    "SNNK",
    "Conversion",
    "ConversionPlan",
    "Dense",
    "EUGen",
    "FeatureStage",
    "LayerStack",
    "LowRank",
    "MergedChain",
    "MergedNetwork",
    "Replacement",
    "build_network",
    "convert",
    "make_projection",
    "merge_chain",
    "polynomial_eugen",
    "resolve_activation",
    "variance_independent",
    "variance_shared",
]
