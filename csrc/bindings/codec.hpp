// The codec's part of the module.
#pragma once

#include <nanobind/nanobind.h>

namespace sllm::bindings {

void bind_codec(nanobind::module_& module);

}  // namespace sllm::bindings
