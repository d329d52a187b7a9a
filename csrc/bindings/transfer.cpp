#include "bindings/transfer.hpp"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <future>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "bindings/arguments.hpp"
#include "io/control.hpp"
#include "io/file.hpp"
#include "io/transfer.hpp"
#include "io/tuner.hpp"
#include "lanes/link_stock.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace sllm::bindings {
namespace {

using Pair = std::tuple<std::int64_t, std::int64_t>;
using Triple = std::tuple<std::int64_t, std::int64_t, std::int64_t>;
using Quintuple = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t>;
using Sextuple =
    std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t>;
// A device and its base; and those to go via.
using Device =
    std::variant<Pair, std::tuple<std::int64_t, std::int64_t, std::vector<std::int64_t>>>;
using Files = std::vector<std::shared_ptr<io::File>>;
using ReleaseGil = nb::call_guard<nb::gil_scoped_release>;

// How often a thread that waits looks for signals, and calls back.
constexpr std::chrono::milliseconds kTurn{100};

// Reads that are parsed once and asked for again and again.
struct Reads {
  std::vector<io::TransferRead> list;
};

using ReadsGiven = std::variant<std::shared_ptr<Reads>, std::vector<Quintuple>>;

std::vector<io::TransferRead> parse_reads(const std::vector<Quintuple>& reads) {
  std::vector<io::TransferRead> parsed;
  parsed.reserve(reads.size());
  for (const auto& [step, file, file_offset, size, step_offset] : reads) {
    parsed.push_back({step, file, file_offset, size, step_offset});
  }
  return parsed;
}

io::TransferDevice to_device(const Device& device) {
  if (const auto* pair = std::get_if<Pair>(&device)) {
    return {std::get<0>(*pair), std::get<1>(*pair), {}};
  }
  const auto& [ordinal, base, via] = std::get<1>(device);
  return {ordinal, base, via};
}

// Waits without the interpreter lock; takes it for signals, and for `watch` if there is one.
void wait_for(const std::future<io::TransferReport>& result, const nb::object& watch) {
  for (;;) {
    {
      const nb::gil_scoped_release release;
      if (result.wait_for(kTurn) == std::future_status::ready) return;
    }
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    if (!watch.is_none()) watch();
  }
}

// The transfer has a thread of its own, and this one calls back. However it ends, the transfer has.
io::TransferReport run_beside(const io::TransferRequest& request, io::Control& control,
                              const nb::object& meanwhile, const nb::object& watch) {
  std::packaged_task<io::TransferReport()> task(
      [&request, &control] { return io::run_transfer(request, control); });
  std::future<io::TransferReport> result = task.get_future();
  std::thread thread(std::move(task));
  try {
    if (!meanwhile.is_none()) meanwhile();
    wait_for(result, watch);
  } catch (...) {
    control.cancel();
    const nb::gil_scoped_release release;
    thread.join();
    throw;
  }
  const nb::gil_scoped_release release;
  thread.join();
  return result.get();
}

io::TransferReport run_transfer(const Files& files, const std::vector<Pair>& steps,
                                const ReadsGiven& reads, const std::vector<Quintuple>& copies,
                                const std::vector<Device>& devices,
                                const std::vector<Sextuple>& decodes, const std::string& mode,
                                std::int64_t threads, io::Control& control,
                                std::shared_ptr<io::Tuner> tuner,
                                std::shared_ptr<lanes::LinkStock> stock,
                                const nb::object& meanwhile, const nb::object& watch) {
  io::TransferRequest request;
  request.tuner = std::move(tuner);
  request.stock = std::move(stock);
  request.mode = io::parse_read_mode(mode);
  request.threads = threads;
  request.files.assign(files.begin(), files.end());
  for (const auto& file : files) {
    if (file == nullptr) throw std::invalid_argument("a file is None");
  }
  for (const auto& [address, after] : steps) {
    if (address < 0) throw std::invalid_argument("a buffer_address is negative");
    request.steps.push_back({reinterpret_cast<std::byte*>(address), after});
  }
  if (const auto* parsed = std::get_if<std::shared_ptr<Reads>>(&reads)) {
    if (*parsed == nullptr) throw std::invalid_argument("reads is None");
    request.reads = (*parsed)->list;
  } else {
    request.reads = parse_reads(std::get<1>(reads));
  }
  for (const auto& [step, device, device_offset, size, step_offset] : copies) {
    request.copies.push_back({step, device, device_offset, size, step_offset});
  }
  for (const auto& [step, device, device_offset, raw_size, stored_size, step_offset] : decodes) {
    request.decodes.push_back({step, device, device_offset, raw_size, stored_size, step_offset});
  }
  for (const Device& device : devices) request.devices.push_back(to_device(device));
  if (!meanwhile.is_none() || !watch.is_none()) {
    return run_beside(request, control, meanwhile, watch);
  }
  const nb::gil_scoped_release release;
  return io::run_transfer(request, control);
}

std::vector<bool> are_resident(const Files& files, const std::vector<Triple>& ranges) {
  std::vector<bool> found;
  found.reserve(ranges.size());
  for (const auto& [index, offset, size] : ranges) {
    const auto* file = index < 0 ? nullptr : files.at(static_cast<std::size_t>(index)).get();
    if (file == nullptr) throw std::invalid_argument("a range of no file");
    const std::size_t asked = checked_size(size);
    found.push_back(2 * file->resident_bytes(checked_size(offset), asked) >= asked);
  }
  return found;
}

}  // namespace

void bind_transfer(nb::module_& module) {
  using io::TransferReport;
  nb::class_<TransferReport>(module, "TransferReport", "What a transfer did.")
      .def_rw("bytes_direct", &TransferReport::bytes_direct)
      .def_rw("bytes_buffered", &TransferReport::bytes_buffered)
      .def_rw("bytes_copied", &TransferReport::bytes_copied)
      .def_prop_ro("setting",
                   [](const TransferReport& self) {
                     const auto& [threads, depth, size] = self.setting;
                     return std::make_tuple(threads, depth, size);
                   })
      .def_rw("read_s", &TransferReport::read_s)
      .def_rw("copy_s", &TransferReport::copy_s)
      .def_rw("total_s", &TransferReport::total_s);
  using lanes::LinkStock;
  nb::class_<LinkStock>(module, "LinkStock",
                        "What transfers need of GPUs beside the memory they fill, kept for the "
                        "next ones.",
                        nb::is_final())
      .def(nb::init<>())
      .def_prop_ro("idle", &LinkStock::idle);
  nb::class_<Reads>(module, "Reads", "The reads of transfers, parsed once.", nb::is_final())
      .def(
          "__init__",
          [](Reads* self, const std::vector<Quintuple>& reads) {
            new (self) Reads{parse_reads(reads)};
          },
          "reads"_a)
      .def("__len__", [](const Reads& self) { return self.list.size(); });
  module.def("run_transfer", &run_transfer, "files"_a, "steps"_a, "reads"_a, "copies"_a,
             "devices"_a, nb::kw_only(), "decodes"_a = std::vector<Sextuple>(), "mode"_a,
             "threads"_a, "control"_a, "tuner"_a = nb::none(), "stock"_a = nb::none(),
             "meanwhile"_a = nb::none(), "watch"_a = nb::none());
  module.def("are_resident", &are_resident, "files"_a, "ranges"_a, ReleaseGil());
}

}  // namespace sllm::bindings
