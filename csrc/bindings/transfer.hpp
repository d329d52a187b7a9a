// Transfers, for Python.
#pragma once

#include <nanobind/nanobind.h>

namespace sllm::bindings {

void bind_transfer(nanobind::module_& module);

}  // namespace sllm::bindings
