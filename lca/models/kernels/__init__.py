"""Convolutions and pooling, written so that XLA runs them fast.

Local training computes convolutions inside of compiled loops, where XLA is slow
on CPUs, and under `vmap` with one kernel per client, where it is slow on GPUs.
The modules here compute the same results in other forms.
"""
