"""What a segmentation does when its input gets worse: a region of a sample, degraded step by step [paper: Benchmark on simulated datasets]."""
