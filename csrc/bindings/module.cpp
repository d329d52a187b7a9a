// The Python face of the native core: nothing outside of this directory knows Python. See _C.pyi.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/arguments.hpp"
#include "bindings/codec.hpp"
#include "bindings/products.hpp"
#include "bindings/transfer.hpp"
#include "bindings/tuner.hpp"
#include "io/checksum.hpp"
#include "io/control.hpp"
#include "io/crc32c.hpp"
#include "io/errors.hpp"
#include "io/file.hpp"
#include "io/probe.hpp"
#include "io/read_queue.hpp"
#include "io/writer.hpp"
#include "pool/dlpack.hpp"
#include "pool/host_memory.hpp"
#include "shim/cuda_device.hpp"
#include "shim/cuda_driver.hpp"
#include "shim/cuda_memory.hpp"
#include "shim/cufile.hpp"
#include "shim/peer_access.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Pair = std::tuple<std::int64_t, std::int64_t>;
using Triple = std::tuple<std::int64_t, std::int64_t, std::int64_t>;
using Quadruple = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>;
using ReleaseGil = nb::call_guard<nb::gil_scoped_release>;
using sllm::bindings::checked_memory;
using sllm::bindings::checked_size;

// ---------------------------------------------------------------------------------------------
// Exceptions

struct ExceptionTypes {
  PyObject* native_error;
  PyObject* cuda_error;
  PyObject* cancelled;
};
ExceptionTypes exception_types{};

void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const sllm::SystemError& error) {
    nb::object arguments = error.path.empty()
                               ? nb::make_tuple(error.code, error.what())
                               : nb::make_tuple(error.code, error.what(), error.path);
    PyErr_SetObject(exception_types.native_error, arguments.ptr());
  } catch (const sllm::cuda::DriverError& error) {
    PyErr_SetObject(exception_types.cuda_error, nb::make_tuple(error.what(), error.code).ptr());
  } catch (const std::system_error& error) {  // a thread or a lock that the system refused
    PyErr_SetObject(exception_types.native_error,
                    nb::make_tuple(error.code().value(), error.what()).ptr());
  } catch (const sllm::CancelledError& error) {
    PyErr_SetString(exception_types.cancelled, error.what());
  }
}

PyObject* add_exception(nb::module_& module, const char* name, const char* doc, PyObject* base) {
  const std::string qualified = "sllm_store.native._C." + std::string(name);
  PyObject* type = PyErr_NewExceptionWithDoc(qualified.c_str(), doc, base, nullptr);
  if (type == nullptr) throw nb::python_error();
  module.attr(name) = nb::borrow(type);
  return type;  // kept for ever: an error may be translated until the interpreter ends
}

void bind_exceptions(nb::module_& module) {
  exception_types.native_error = add_exception(
      module, "NativeError",
      "A system call or a driver call failed. errno is set; filename names the file, if any.",
      PyExc_OSError);
  exception_types.cuda_error =
      add_exception(module, "CudaError",
                    "A CUDA driver call failed. args = (message, code); code 2 is out of memory.",
                    PyExc_RuntimeError);
  exception_types.cancelled = add_exception(
      module, "Cancelled", "The Control given to a call was cancelled before the call finished.",
      PyExc_RuntimeError);
  nb::register_exception_translator(translate);
}

// ---------------------------------------------------------------------------------------------
// DLPack

constexpr char kCapsuleName[] = "dltensor";

void delete_capsule(PyObject* capsule) {
  if (PyCapsule_IsValid(capsule, kCapsuleName) == 0) return;  // a consumer took it over
  void* pointer = PyCapsule_GetPointer(capsule, kCapsuleName);
  auto* managed = static_cast<sllm::pool::DlManagedTensor*>(pointer);
  managed->deleter(managed);
}

nb::object to_capsule(std::shared_ptr<void> owner, void* data, std::size_t size,
                      sllm::pool::DlDevice device) {
  auto* managed = sllm::pool::export_bytes(std::move(owner), data, size, device);
  PyObject* capsule = PyCapsule_New(managed, kCapsuleName, delete_capsule);
  if (capsule == nullptr) {
    managed->deleter(managed);
    throw nb::python_error();
  }
  return nb::steal(capsule);
}

// A Python object's share in C++ memory; tensors hold shares of their own. The last share frees
// the memory, which can take long and waits for no Python.
template <typename Memory>
struct Shared {
  std::shared_ptr<Memory> memory;

  ~Shared() {
    nb::gil_scoped_release release;
    memory.reset();
  }
};

std::uint64_t to_integer(const std::byte* address) {
  return reinterpret_cast<std::uintptr_t>(address);
}
std::uint64_t to_integer(sllm::cuda::DevicePointer address) {
  return address;
}

template <typename Memory>
nb::class_<Shared<Memory>> bind_memory(nb::module_& module, const char* name, const char* doc) {
  return nb::class_<Shared<Memory>>(module, name, doc, nb::is_final())
      .def_prop_ro("address",
                   [](const Shared<Memory>& self) { return to_integer(self.memory->address()); })
      .def_prop_ro("size", [](const Shared<Memory>& self) { return self.memory->size(); });
}

template <typename Memory>
void bind_host_dlpack(nb::class_<Shared<Memory>>& type) {
  type.def("__dlpack__",
           [](const Shared<Memory>& self, const nb::kwargs&) {
             return to_capsule(self.memory, self.memory->address(), self.memory->size(),
                               {sllm::pool::kDlCpu, 0});
           })
      .def("__dlpack_device__",
           [](const Shared<Memory>&) { return std::make_tuple(sllm::pool::kDlCpu, 0); });
}

template <typename Memory>
void bind_device_dlpack(nb::class_<Shared<Memory>>& type) {
  type.def_prop_ro("device", [](const Shared<Memory>& self) { return self.memory->device(); })
      .def("__dlpack__",
           [](const Shared<Memory>& self, const nb::kwargs&) {
             return to_capsule(self.memory, reinterpret_cast<void*>(self.memory->address()),
                               self.memory->size(), {sllm::pool::kDlCuda, self.memory->device()});
           })
      .def("__dlpack_device__", [](const Shared<Memory>& self) {
        return std::make_tuple(sllm::pool::kDlCuda, self.memory->device());
      });
}

// ---------------------------------------------------------------------------------------------
// Arguments

std::chrono::duration<double> checked_timeout(double timeout_s) {
  constexpr double kTimeoutMax = 1e8;  // three years: what no clock overflows at
  if (std::isnan(timeout_s) || timeout_s < 0) {
    throw std::invalid_argument("timeout_s is negative or not a number");
  }
  return std::chrono::duration<double>(std::min(timeout_s, kTimeoutMax));
}

// ---------------------------------------------------------------------------------------------
// Files

void bind_control(nb::module_& module) {
  using sllm::io::Control;
  nb::class_<Control>(module, "Control",
                      "Shared by a running call and those who watch it: progress, cancellation, "
                      "waiting.",
                      nb::is_final())
      .def(nb::init<>())
      .def("cancel", &Control::cancel, ReleaseGil())
      .def_prop_ro("cancelled", &Control::cancelled)
      .def_prop_ro("bytes_done", &Control::bytes_done)
      .def(
          "wait",
          [](Control& self, std::int64_t above_bytes, double timeout_s) {
            const auto timeout = checked_timeout(timeout_s);
            if (above_bytes < 0) return self.bytes_done();
            return self.wait(static_cast<std::uint64_t>(above_bytes), timeout);
          },
          "above_bytes"_a, "timeout_s"_a, ReleaseGil());
}

void bind_file(nb::module_& module) {
  using sllm::io::File;
  nb::class_<File>(module, "File",
                   "A data file open for reading, with a direct (O_DIRECT) descriptor when the "
                   "file system allows.",
                   nb::is_final())
      .def(nb::init<std::string>(), "path"_a, ReleaseGil())
      .def_prop_ro("path", &File::path)
      .def_prop_ro("size", &File::size)
      .def_prop_ro("direct_alignment", &File::direct_alignment)
      .def(
          "resident_bytes",
          [](const File& self, std::int64_t offset, std::int64_t size) {
            return self.resident_bytes(checked_size(offset), checked_size(size));
          },
          "offset"_a, "size"_a, ReleaseGil())
      .def("evict", &File::evict, ReleaseGil())
      .def(
          "read_into",
          [](const File& self, std::int64_t offset, std::int64_t address, std::int64_t size) {
            std::byte* destination = checked_memory(address, size);
            self.read_exactly(checked_size(offset), destination, checked_size(size));
          },
          "offset"_a, "address"_a, "size"_a, ReleaseGil());
}

void bind_checksums(nb::module_& module) {
  module.def(
      "checksum_ranges",
      [](const std::shared_ptr<sllm::io::File>& file, const std::vector<Pair>& ranges,
         const std::string& mode, std::int64_t threads, sllm::io::Control& control) {
        if (file == nullptr) throw std::invalid_argument("the file is None");
        std::vector<sllm::io::ChecksumRange> parsed;
        for (const auto& [offset, size] : ranges) parsed.push_back({offset, size});
        return sllm::io::checksum_ranges(file, parsed, sllm::io::parse_read_mode(mode), threads,
                                         control);
      },
      "file"_a, "ranges"_a, nb::kw_only(), "mode"_a, "threads"_a, "control"_a, ReleaseGil());
  module.def(
      "crc32c",
      [](std::int64_t address, std::int64_t size) {
        return sllm::io::crc32c(0, checked_memory(address, size), checked_size(size));
      },
      "address"_a, "size"_a, ReleaseGil());
  module.def(
      "crc32c_combine",
      [](std::uint32_t first, std::uint32_t second, std::int64_t second_size) {
        return sllm::io::crc32c_combine(first, second, checked_size(second_size));
      },
      "first"_a, "second"_a, "second_size"_a);
}

void bind_writer(nb::module_& module) {
  using sllm::io::FileWriter;
  nb::class_<FileWriter>(module, "FileWriter",
                         "Writes one new file: direct I/O where possible, several threads, "
                         "explicit errors.",
                         nb::is_final())
      .def(nb::init<std::string, std::int64_t, bool, std::shared_ptr<sllm::io::Tuner>>(), "path"_a,
           nb::kw_only(), "threads"_a, "direct"_a, "tuner"_a = nb::none(), ReleaseGil())
      .def(
          "write",
          [](FileWriter& self, const std::vector<Triple>& pieces, sllm::io::Control& control) {
            std::vector<sllm::io::WritePiece> parsed;
            for (const auto& [offset, address, size] : pieces) {
              parsed.push_back({offset, address, size});
            }
            return self.write(parsed, control);
          },
          "pieces"_a, "control"_a, ReleaseGil())
      .def("finish", &FileWriter::finish, "total_size"_a, ReleaseGil())
      .def("abort", &FileWriter::abort, ReleaseGil());
}

// ---------------------------------------------------------------------------------------------
// Memory

void bind_host_memory(nb::module_& module) {
  using sllm::pool::HostBuffer;
  using sllm::pool::PoolMapping;
  using sllm::pool::SharedPool;
  auto buffer = bind_memory<HostBuffer>(
      module, "HostBuffer",
      "Anonymous memory, page aligned, transparent huge pages where allowed, zeroed.");
  buffer
      .def(
          "__init__",
          [](Shared<HostBuffer>* self, std::int64_t size, bool pinned) {
            new (self) Shared<HostBuffer>{std::make_shared<HostBuffer>(size, pinned)};
          },
          "size"_a, nb::kw_only(), "pinned"_a = false, ReleaseGil())
      .def(
          "populate",
          [](const Shared<HostBuffer>& self, std::int64_t threads) {
            self.memory->populate(threads);
          },
          "threads"_a, ReleaseGil());
  bind_host_dlpack(buffer);

  bind_memory<SharedPool>(module, "SharedPool",
                          "A sealed-size memfd mapped shared: the host tier's memory.")
      .def(
          "__init__",
          [](Shared<SharedPool>* self, std::int64_t size) {
            new (self) Shared<SharedPool>{std::make_shared<SharedPool>(size)};
          },
          "size"_a, ReleaseGil())
      .def_prop_ro("pinned",
                   [](const Shared<SharedPool>& self) {
                     nb::gil_scoped_release release;
                     return self.memory->pinned();
                   })
      .def("read_only_fd",
           [](const Shared<SharedPool>& self) { return self.memory->read_only_fd(); })
      .def(
          "populate",
          [](const Shared<SharedPool>& self, std::int64_t threads) {
            self.memory->populate(threads);
          },
          "threads"_a, ReleaseGil())
      .def("pin", [](const Shared<SharedPool>& self) { self.memory->pin(); }, ReleaseGil());

  auto mapping = bind_memory<PoolMapping>(
      module, "PoolMapping",
      "Chunks of a SharedPool of another process, mapped privately and contiguously.");
  mapping.def(
      "__init__",
      [](Shared<PoolMapping>* self, int fd, std::int64_t chunk_size,
         const std::vector<std::int64_t>& chunks, std::int64_t size, int lease) {
        new (self)
            Shared<PoolMapping>{std::make_shared<PoolMapping>(fd, chunk_size, chunks, size, lease)};
      },
      "fd"_a, "chunk_size"_a, "chunks"_a, "size"_a, nb::kw_only(), "lease"_a = -1, ReleaseGil());
  bind_host_dlpack(mapping);
}

std::shared_ptr<sllm::io::ReadQueue> make_read_queue(
    const std::vector<std::shared_ptr<sllm::io::File>>& files, bool in_turns) {
  using sllm::io::ReadQueue;
  for (const auto& file : files) {
    if (file == nullptr) throw std::invalid_argument("a file is None");
  }
  std::shared_ptr<ReadQueue> queue =
      ReadQueue::create({files.begin(), files.end()},
                        in_turns ? ReadQueue::Order::kInTurns : ReadQueue::Order::kTogether);
  if (queue == nullptr) throw sllm::SystemError(EOPNOTSUPP, "io_uring is not available");
  return queue;
}

std::uint64_t begin_reads(sllm::io::ReadQueue& queue, const std::vector<Quadruple>& reads,
                          const Shared<sllm::pool::HostBuffer>& buffer, std::int64_t start) {
  const auto memory = buffer.memory;
  nb::gil_scoped_release release;
  const std::size_t from = checked_size(start);
  std::vector<sllm::io::ReadQueue::Read> parsed;
  parsed.reserve(reads.size());
  for (const auto& [file, offset, size, place] : reads) {
    parsed.push_back(
        {checked_size(file), checked_size(offset), checked_size(size), from + checked_size(place)});
  }
  return queue.begin(parsed, {memory, memory->address(), memory->size()});
}

void bind_read_queue(nb::module_& module) {
  using sllm::io::ReadQueue;
  nb::class_<ReadQueue>(module, "ReadQueue",
                        "Reads that are asked for ahead and go on while whoever asked computes.",
                        nb::is_final())
      .def(nb::new_(&make_read_queue), "files"_a, nb::kw_only(), "in_turns"_a)
      .def("begin", &begin_reads, "reads"_a, "buffer"_a, "start"_a = 0)
      .def(
          "wait",
          [](ReadQueue& self, std::uint64_t number, double timeout_s) {
            const auto timeout = checked_timeout(timeout_s);
            nb::gil_scoped_release release;
            const auto deadline = ReadQueue::Clock::now() +
                                  std::chrono::duration_cast<ReadQueue::Clock::duration>(timeout);
            return self.wait(number, deadline);
          },
          "number"_a, "timeout_s"_a)
      .def("drain", &ReadQueue::drain, ReleaseGil());
}

void bind_device_memory(nb::module_& module) {
  using sllm::cuda::DeviceBuffer;
  using sllm::cuda::DeviceMapping;
  auto buffer = bind_memory<DeviceBuffer>(
      module, "DeviceBuffer",
      "Device memory of its own (cuMemAlloc), exportable by CUDA IPC, freed with its last view.");
  buffer
      .def(
          "__init__",
          [](Shared<DeviceBuffer>* self, int device, std::int64_t size) {
            new (self)
                Shared<DeviceBuffer>{std::make_shared<DeviceBuffer>(device, checked_size(size))};
          },
          "device"_a, "size"_a, ReleaseGil())
      .def("ipc_handle", [](const Shared<DeviceBuffer>& self) {
        std::string handle;
        {
          nb::gil_scoped_release release;
          handle = self.memory->ipc_handle();
        }
        return nb::bytes(handle.data(), handle.size());
      });
  bind_device_dlpack(buffer);

  auto mapping = bind_memory<DeviceMapping>(
      module, "DeviceMapping",
      "Another process's device memory, opened from its 64-byte CUDA IPC handle.");
  mapping.def(
      "__init__",
      [](Shared<DeviceMapping>* self, int device, const nb::bytes& handle, int lease) {
        const std::string bytes(handle.c_str(), handle.size());
        nb::gil_scoped_release release;
        new (self) Shared<DeviceMapping>{std::make_shared<DeviceMapping>(device, bytes, lease)};
      },
      "device"_a, "handle"_a, nb::kw_only(), "lease"_a = -1);
  bind_device_dlpack(mapping);
}

void bind_devices(nb::module_& module) {
  namespace cuda = sllm::cuda;
  module.def("cuda_available", [] { return cuda::unavailable_reason().empty(); }, ReleaseGil());
  module.def("cuda_unavailable_reason", &cuda::unavailable_reason, ReleaseGil());
  module.def("cufile_unavailable_reason", &sllm::cufile::unavailable_reason, ReleaseGil());
  module.def("device_count", &cuda::device_count, ReleaseGil());
  module.def("enable_peer_access", &cuda::try_enable_peer_access, "device"_a, "peer"_a,
             ReleaseGil());
  module.def("device_uuid", &cuda::device_uuid, "device"_a, ReleaseGil());
  module.def("device_name", &cuda::device_name, "device"_a, ReleaseGil());
  module.def(
      "device_memory",
      [](int device) {
        const cuda::MemoryInfo info = cuda::device_memory(device);
        return std::make_tuple(info.free, info.total);
      },
      "device"_a, ReleaseGil());
  module.def(
      "copy_from_device",
      [](int device, std::int64_t device_address, std::int64_t address, std::int64_t size) {
        std::byte* destination = checked_memory(address, size);
        cuda::copy_to_host(device, static_cast<cuda::DevicePointer>(device_address), destination,
                           checked_size(size));
      },
      "device"_a, "device_address"_a, "address"_a, "size"_a, ReleaseGil());
  module.def(
      "copy_to_device",
      [](int device, std::int64_t address, std::int64_t device_address, std::int64_t size) {
        const std::byte* source = checked_memory(address, size);
        cuda::copy_to_device(device, source, static_cast<cuda::DevicePointer>(device_address),
                             checked_size(size));
      },
      "device"_a, "address"_a, "device_address"_a, "size"_a, ReleaseGil());
}

nb::dict probe(const std::string& path) {
  sllm::io::Probe found{};
  {
    nb::gil_scoped_release release;
    found = sllm::io::probe(path);
  }
  nb::dict answer;
  answer["io_uring"] = found.io_uring;
  answer["io_uring_reason"] = found.io_uring_reason;
  answer["direct_alignment"] = found.direct_alignment;
  answer["cachestat"] = found.cachestat;
  answer["huge_pages"] = found.huge_pages;
  answer["kernel"] = found.kernel;
  answer["file_system"] = found.file_system;
  return answer;
}

}  // namespace

NB_MODULE(_C, module) {
  nb::set_leak_warnings(false);  // an object alive at exit is no fault of the user's program
  bind_exceptions(module);
  bind_control(module);
  bind_file(module);
  sllm::bindings::bind_tuner(module);
  sllm::bindings::bind_transfer(module);
  bind_checksums(module);
  bind_writer(module);
  bind_host_memory(module);
  bind_read_queue(module);
  bind_device_memory(module);
  bind_devices(module);
  sllm::bindings::bind_codec(module);
  sllm::bindings::bind_products(module);
  sllm::bindings::bind_layer(module);
  module.def("probe", &probe, "path"_a);
}
