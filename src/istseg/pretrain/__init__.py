"""Training of the base model on painted tissue: no real image, no published weights.

Batches of tissue are drawn and painted on the device that trains, with every property drawn at random (domain randomisation): shapes, stains, transcripts,
optics. The package `simulate` is another generator, made for raw folders with all their files; models are judged on it too, because it was never trained on.
"""
