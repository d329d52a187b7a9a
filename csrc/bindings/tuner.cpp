#include "bindings/tuner.hpp"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "io/reader.hpp"
#include "io/tuner.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace sllm::bindings {
namespace {

using io::IoSetting;
using io::RefusedSetting;
using io::Tuner;
using Setting = std::tuple<std::int64_t, std::int64_t, std::int64_t>;
using Refused = std::tuple<std::int64_t, std::int64_t, std::int64_t, double>;

template <typename Integer>
Integer checked(std::int64_t value) {
  if (value < 1 || value > std::numeric_limits<std::int32_t>::max()) {
    throw std::invalid_argument("a setting of " + std::to_string(value) + " is out of range");
  }
  return static_cast<Integer>(value);
}

IoSetting to_setting(std::int64_t threads, std::int64_t depth, std::int64_t size) {
  return {checked<unsigned>(threads), checked<unsigned>(depth), checked<std::uint32_t>(size)};
}

Setting from_setting(const IoSetting& setting) {
  return {setting.threads, setting.depth, setting.size};
}

std::shared_ptr<Tuner> make(bool queued, const Setting& start, double rate,
                            const std::vector<Refused>& refused, bool learns) {
  std::vector<RefusedSetting> parsed;
  for (const auto& [threads, depth, size, ratio] : refused) {
    parsed.push_back({to_setting(threads, depth, size), ratio});
  }
  return std::make_shared<Tuner>(queued, std::apply(to_setting, start), rate, parsed, learns);
}

std::vector<Refused> refused(const Tuner& self) {
  std::vector<Refused> answer;
  const io::SettingSearch search = self.search();
  for (const auto& [setting, ratio] : search.refused()) {
    answer.emplace_back(setting.threads, setting.depth, setting.size, ratio);
  }
  return answer;
}

}  // namespace

void bind_tuner(nb::module_& module) {
  nb::class_<Tuner>(module, "Tuner", "Learns from the bytes that arrive how a disk is best asked.",
                    nb::is_final())
      .def(nb::new_(&make), nb::kw_only(), "queued"_a, "start"_a, "rate"_a = 0.0,
           "refused"_a = std::vector<Refused>{}, "learns"_a = true)
      .def_prop_ro("queued", &Tuner::queued)
      .def_prop_ro("setting", [](const Tuner& self) { return from_setting(self.setting()); })
      .def_prop_ro("best", [](const Tuner& self) { return from_setting(self.search().best()); })
      .def_prop_ro("rate", [](const Tuner& self) { return self.search().rate(); })
      .def_prop_ro("refused", &refused)
      .def_prop_ro("settled", [](const Tuner& self) { return self.search().settled(); })
      .def_prop_ro("windows", &Tuner::windows)
      .def(
          "begin",
          [](Tuner& self, std::int64_t threads_max) { self.begin(checked<unsigned>(threads_max)); },
          "threads_max"_a)
      .def("end", &Tuner::end)
      .def(
          "add",
          [](Tuner& self, std::int64_t size, double now_s) {
            if (size < 0) throw std::invalid_argument("size is negative");
            return self.add(static_cast<std::uint64_t>(size), now_s);
          },
          "size"_a, "now_s"_a)
      .def("interrupt", &Tuner::interrupt);
  module.def(
      "has_queues",
      [](const std::string& mode) { return io::has_queues(io::parse_read_mode(mode)); }, "mode"_a);
}

}  // namespace sllm::bindings
