// What learns how a disk is best asked, for Python.
#pragma once

#include <nanobind/nanobind.h>

namespace sllm::bindings {

void bind_tuner(nanobind::module_& module);

}  // namespace sllm::bindings
