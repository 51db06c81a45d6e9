"""The CUDA kernels compile, also on a machine without a GPU and without a CUDA toolkit. What they compute: test_gpu.py."""

from __future__ import annotations

import pytest
import torch

from istseg.errors import IstsegError
from istseg.network import kernels

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this build of torch has no CUDA")

TURING, AMPERE, HOPPER = (7, 5), (8, 0), (9, 0)


@pytest.mark.parametrize("capability", [TURING, AMPERE, HOPPER])
def test_kernels_compile(capability):
    sources = {kernels.source_of(name) for name in ("spread", "unite_runs", "flatten")} | {kernels.source_of("activate", torch.float16)}
    for source in sources:
        assert kernels.compiled(source, capability).startswith(b"\x7fELF")


def test_bfloat16_is_for_gpus_that_have_it():
    source = kernels.source_of("add", torch.bfloat16)
    assert kernels.compiled(source, AMPERE).startswith(b"\x7fELF")
    with pytest.raises(IstsegError, match="do not compile"):
        kernels.compiled(source, TURING)


def test_the_compilers_words_are_told():
    with pytest.raises(IstsegError, match="undefined"):
        kernels.compiled('extern "C" __global__ void f(int* x) { x[0] = missing; }', HOPPER)
