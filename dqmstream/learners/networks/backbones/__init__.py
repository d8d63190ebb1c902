"""Published network families by name, for maps of any size.

build_backbone("swin", channels=1, height=64, width=72)              # (B, 1, 64, 72) -> (B, features)
build_classifier("ensemble:vit+cnn", channels=2, height=32, width=32, classes=2)   # (B, 2, 32, 32) -> (B, 2)
"""

from __future__ import annotations

from dqmstream.learners.networks.backbones.build import NAMES, READOUTS, SIZES, build_backbone, build_classifier

__all__ = ["NAMES", "READOUTS", "SIZES", "build_backbone", "build_classifier"]
