"""Simulated tissue with known cells, written as raw folders of the instruments.

The tissue is an unbounded plane in the `scene` frame: µm, origin at the top left corner of the mosaic, x right, y down. It is made of square blocks,
each a pure function of the seed and its index, so that the tissue does not depend on the order in which blocks are made and memory does not
grow with the slide.
"""
