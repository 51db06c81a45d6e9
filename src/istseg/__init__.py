"""RNA-aware cell segmentation of image-based spatial transcriptomics (RNA2seg method) as pipeline stages."""

from importlib.metadata import version

__version__ = version("istseg")
