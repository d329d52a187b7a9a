#include "stress_deliveries.hpp"

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "codec/codec.hpp"
#include "io/control.hpp"
#include "io/errors.hpp"
#include "io/file.hpp"
#include "io/transfer.hpp"
#include "pool/host_memory.hpp"
#include "shim/cuda_device.hpp"
#include "shim/cuda_memory.hpp"

namespace {

using namespace sllm;
using Bytes = std::vector<std::byte>;

constexpr std::size_t kChunk = 256 << 10;
constexpr std::size_t kChunks = 40;
constexpr std::size_t kSlots = 3;
constexpr std::size_t kCodedAt = 4096;
constexpr std::size_t kRawAt = 200 << 10;
constexpr std::size_t kRawSize = 40001;
constexpr std::size_t kWeights = 150000;

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "stress: %s\n", what);
  std::abort();
}

std::int64_t number(const void* address) {
  return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(address));
}

Bytes random_weights(std::mt19937& engine) {
  std::geometric_distribution<unsigned> exponent(0.5);
  Bytes bytes(kWeights);
  for (std::size_t at = 0; at < kWeights; at += 2) {
    const unsigned word = engine() % 2 << 15 | (120 - exponent(engine)) << 7 | engine() % 128;
    const auto narrow = static_cast<std::uint16_t>(word);
    std::memcpy(bytes.data() + at, &narrow, sizeof(narrow));
  }
  return bytes;
}

// What each chunk holds: a coded segment and raw bytes.
struct Image {
  explicit Image(unsigned seed) : stored(kChunks * kChunk) {
    std::mt19937 engine(seed);
    weights = random_weights(engine);
    Bytes coded(kWeights);
    coded.resize(codec::encode_segment(weights, coded));
    require(!coded.empty() && kCodedAt + coded.size() <= kRawAt, "weights were not coded");
    coded_size = coded.size();
    for (auto& byte : stored) byte = static_cast<std::byte>(engine());
    for (std::size_t i = 0; i < kChunks; ++i) {
      std::memcpy(&stored[i * kChunk + kCodedAt], coded.data(), coded.size());
    }
  }

  // What the arenas hold in the end, chunk by chunk.
  Bytes arena() const {
    Bytes bytes(kChunks * kChunk);
    for (std::size_t i = 0; i < kChunks; ++i) {
      std::memcpy(&bytes[i * kChunk], weights.data(), kWeights);
      std::memcpy(&bytes[i * kChunk + kRawAt], &stored[i * kChunk + kRawAt], kRawSize);
    }
    return bytes;
  }

  Bytes weights;
  Bytes stored;
  std::size_t coded_size;
};

io::TransferRequest plan(const Image& image, std::shared_ptr<const io::File> file,
                         const pool::HostBuffer& ring) {
  io::TransferRequest request;
  request.files = {std::move(file)};
  for (std::size_t i = 0; i < kChunks; ++i) {
    const auto step = static_cast<std::int64_t>(i);
    const auto at = static_cast<std::int64_t>(i * kChunk);
    request.steps.push_back({ring.address() + i % kSlots * kChunk,
                             i < kSlots ? -1 : step - static_cast<std::int64_t>(kSlots)});
    request.reads.push_back({step, 0, at, kChunk, 0});
    for (std::int64_t device = 0; device < 3; ++device) {
      request.copies.push_back({step, device, at + static_cast<std::int64_t>(kRawAt), kRawSize,
                                static_cast<std::int64_t>(kRawAt)});
      request.decodes.push_back(
          {step, device, at, kWeights, static_cast<std::int64_t>(image.coded_size), kCodedAt});
    }
  }
  return request;
}

}  // namespace

void stress_deliveries(const std::string& directory, unsigned seed,
                       const std::shared_ptr<lanes::LinkStock>& stock) {
  Image image(seed);
  const bool cancel = seed % 3 == 1;
  const bool corrupt = seed % 3 == 2;
  if (corrupt) std::memset(&image.stored[seed % kChunks * kChunk + kCodedAt], 0xFF, 5000);
  const std::string path = directory + "/image-" + std::to_string(seed);
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(image.stored.data()),
             static_cast<std::streamsize>(image.stored.size()));
  const pool::HostBuffer ring(kSlots * kChunk, seed % 2 == 0);
  io::TransferRequest request = plan(image, std::make_shared<const io::File>(path), ring);
  request.threads = 1 + seed % 5;
  if (seed % 4 != 0) request.stock = stock;
  const Bytes expected = image.arena();
  const cuda::DeviceBuffer arenas[] = {{0, expected.size()}, {1, expected.size()}};
  Bytes host(expected.size());
  request.devices = {{0, number(reinterpret_cast<void*>(arenas[0].address())), {1}},
                     {1, number(reinterpret_cast<void*>(arenas[1].address())), {0}},
                     {io::kHostOrdinal, number(host.data()), {}}};
  io::Control control;
  std::jthread canceller;
  if (cancel) {
    canceller = std::jthread([&] {
      control.wait(seed % 1000 * 1000, std::chrono::duration<double>(5));
      control.cancel();
    });
  }
  try {
    io::run_transfer(request, control);
  } catch (const CancelledError&) {
    require(cancel, "cancelled by nobody");
    return;
  } catch (const SystemError& error) {
    require(corrupt && error.code == EBADMSG && error.path == path, "another error of a delivery");
    return;
  }
  require(!corrupt, "a corrupt segment was delivered");
  Bytes found(expected.size());
  for (std::size_t i = 0; i < kChunks; ++i) {  // what is between the pieces is nobody's
    const auto same = [&](const Bytes& bytes, std::size_t at, std::size_t size) {
      return std::memcmp(&bytes[i * kChunk + at], &expected[i * kChunk + at], size) == 0;
    };
    require(same(host, 0, kWeights) && same(host, kRawAt, kRawSize), "host memory differs");
  }
  for (const auto& arena : arenas) {
    cuda::copy_to_host(arena.device(), arena.address(), found.data(), found.size());
    for (std::size_t i = 0; i < kChunks; ++i) {
      require(std::memcmp(&found[i * kChunk], &expected[i * kChunk], kWeights) == 0 &&
                  std::memcmp(&found[i * kChunk + kRawAt], &expected[i * kChunk + kRawAt],
                              kRawSize) == 0,
              "a GPU's memory differs");
    }
  }
}
