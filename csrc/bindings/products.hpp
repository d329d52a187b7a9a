// The products' part of the module.
#pragma once

#include <nanobind/nanobind.h>

namespace sllm::bindings {

void bind_products(nanobind::module_& module);

}  // namespace sllm::bindings
