// The part of the stress test that multiplies and computes layers from several threads at once.
#pragma once

// Multiplies by random matrices of every format, with every set of instructions and numbers of
// threads, and computes layers. Aborts on a bit that differs from what one thread computes.
void stress_products(unsigned seed);
