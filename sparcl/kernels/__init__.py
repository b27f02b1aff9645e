"""Convolutions that touch existing weights only: forward, input gradient, weight gradient, for the CPU.

:mod:`~sparcl.kernels.rule` says which kernel a network runs, :mod:`~sparcl.kernels.network` runs a whole network,
:mod:`~sparcl.kernels.convolution` is one convolution as a PyTorch operator, :mod:`~sparcl.kernels.library` loads the
compiled loops (``csrc/``), which :mod:`~sparcl.kernels.build` compiles.
"""
