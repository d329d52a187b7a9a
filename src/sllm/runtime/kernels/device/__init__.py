"""Kernels in Triton's language: each states what it computes; its caller checks the arguments.

Importing a module of this package imports Triton.
"""
