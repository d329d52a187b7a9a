// Decodes cases in a way that is asked for: `kernel` (the GPU's, emulated), `portable` or
// `fastest`. What a segment may touch lies against pages that may not be touched.
//
// Arguments: the way, a file of cases (stored size, raw size, stored bytes, one after the other),
// and a file for the answers (one byte, 1 if the segment was found corrupt, then the raw bytes).
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include "codec/block_decoder.hpp"
#include "io/errors.hpp"
#include "kernel_emulator.hpp"

namespace {

// Memory whose end, and the page before its start, are next to pages that fault.
class GuardedMemory {
 public:
  explicit GuardedMemory(std::size_t size)
      : size_(size), pages_((size + kPage - 1) / kPage * kPage + 2 * kPage) {
    base_ = static_cast<std::byte*>(
        ::mmap(nullptr, pages_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) std::abort();
    const std::size_t inner = pages_ - 2 * kPage;
    if (inner != 0 && ::mprotect(base_ + kPage, inner, PROT_READ | PROT_WRITE) != 0) std::abort();
  }
  ~GuardedMemory() { ::munmap(base_, pages_); }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  std::byte* data() const { return base_ + pages_ - kPage - size_; }
  // Bytes on the first page before the memory must be as they were made.
  void require_untouched() const {
    if (std::any_of(base_ + kPage, data(), [](std::byte byte) { return byte != std::byte{0}; })) {
      std::fputs("decoders: bytes before the segment were written\n", stderr);
      std::abort();
    }
  }

 private:
  static constexpr std::size_t kPage = 4096;
  std::size_t size_;
  std::size_t pages_;
  std::byte* base_;
};

using Decode = bool (*)(std::span<const std::byte>, std::span<std::byte>);

bool decode_with(sllm::codec::DecodeGroups groups, std::span<const std::byte> stored,
                 std::span<std::byte> raw) {
  try {
    sllm::codec::decode_segment_with(groups, stored, raw);
  } catch (const sllm::SystemError&) {
    return false;
  }
  return true;
}

Decode find(const std::string& way) {
  if (way == "kernel") return emulator::decode;
  if (way == "portable") {
    return [](std::span<const std::byte> stored, std::span<std::byte> raw) {
      return decode_with(sllm::codec::decode_groups_portable, stored, raw);
    };
  }
  return [](std::span<const std::byte> stored, std::span<std::byte> raw) {
    return decode_with(sllm::codec::fastest_decode_groups(), stored, raw);
  };
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const Decode decode = find(argv[1]);
  std::ifstream cases(argv[2], std::ios::binary);
  std::ofstream answers(argv[3], std::ios::binary);
  std::array<std::uint32_t, 2> sizes;
  while (cases.read(reinterpret_cast<char*>(sizes.data()), sizeof(sizes))) {
    const GuardedMemory stored(sizes[0]);
    const GuardedMemory raw(sizes[1]);
    cases.read(reinterpret_cast<char*>(stored.data()), sizes[0]);
    const bool sound = decode({stored.data(), sizes[0]}, {raw.data(), sizes[1]});
    raw.require_untouched();
    answers.put(sound ? 0 : 1);
    answers.write(reinterpret_cast<const char*>(raw.data()), sizes[1]);
  }
  return 0;
}
