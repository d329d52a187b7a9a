"""Computing with weights on a GPU: their layout there, and the kernels that read it."""
