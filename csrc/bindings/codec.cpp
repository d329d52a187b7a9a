#include "bindings/codec.hpp"

#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/arguments.hpp"
#include "codec/codec.hpp"
#include "codec/device_decoder.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace sllm::bindings {
namespace {

using Triple = std::tuple<std::int64_t, std::int64_t, std::int64_t>;
using Quadruple = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>;
using ReleaseGil = nb::call_guard<nb::gil_scoped_release>;

std::vector<std::size_t> encode_segments_into(const std::vector<Triple>& pieces,
                                              std::int64_t threads, io::Control& control) {
  std::vector<codec::EncodePiece> parsed;
  for (const auto& [address, size, destination] : pieces) {
    parsed.push_back(
        {{checked_memory(address, size), checked_size(size)}, checked_memory(destination, size)});
  }
  return codec::encode_segments(parsed, threads, control);
}

void decode_segment(std::int64_t address, std::int64_t stored_size, std::int64_t destination,
                    std::int64_t raw_size) {
  codec::decode_segment({checked_memory(address, stored_size), checked_size(stored_size)},
                        {checked_memory(destination, raw_size), checked_size(raw_size)});
}

std::uint32_t checked_device_size(std::int64_t size) {
  if (checked_size(size) > std::numeric_limits<std::uint32_t>::max()) {
    throw std::invalid_argument(std::to_string(size) + " bytes are no segment");
  }
  return static_cast<std::uint32_t>(size);
}

void decode_segments_on_device(int device, const std::vector<Quadruple>& segments) {
  std::vector<codec::DeviceSegment> parsed;
  for (const auto& [stored, stored_size, raw, raw_size] : segments) {
    parsed.push_back({static_cast<cuda::DevicePointer>(stored),
                      static_cast<cuda::DevicePointer>(raw), checked_device_size(stored_size),
                      checked_device_size(raw_size)});
  }
  codec::decode_on_device(device, parsed);
}

}  // namespace

void bind_codec(nb::module_& module) {
  module.attr("SEGMENT_BYTES") = codec::kSegmentBytes;
  module.def("encode_segments_into", &encode_segments_into, "pieces"_a, nb::kw_only(), "threads"_a,
             "control"_a, ReleaseGil());
  module.def("decode_segment", &decode_segment, "address"_a, "stored_size"_a, "destination"_a,
             "raw_size"_a, ReleaseGil());
  module.def(
      "prepare_decoder", [](int device) { codec::DeviceDecoder::of(device); }, "device"_a,
      ReleaseGil());
  module.def("decode_segments_on_device", &decode_segments_on_device, "device"_a, "segments"_a,
             ReleaseGil());
}

}  // namespace sllm::bindings
