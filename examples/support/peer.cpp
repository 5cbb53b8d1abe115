#include "peer.h"

#include <rewind/rewind.h>

#include <sys/wait.h>
#include <array>
#include <cstdio>
#include <filesystem>

namespace support {

nlohmann::json peer(const char* name, const std::string& arguments) {
  const std::string program = std::filesystem::canonical("/proc/self/exe").parent_path() / "peers" / name;
  // It keeps memory that it frees, as we do, and computes with the OpenBLAS that shares its threads; or it would, now and then,
  // measure page faults, and threads in each other's way.
  const std::string settings =
      "MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=67108864 "
      "LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu/openblas-openmp";
  const std::string command = rewind::str("test -x '", program, "' || exit 77; ", settings, " '", program, "' ", arguments);
  std::FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) throw rewind::Error("cannot start " + program);
  std::string text;
  std::array<char, 4096> part{};
  while (std::fgets(part.data(), static_cast<int>(part.size()), pipe) != nullptr) text += part.data();
  const int status = pclose(pipe);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
    std::printf("Without PyTorch in %s: scripts/bootstrap.sh peers installs it\n", name);
    return {};
  }
  if (status != 0) throw rewind::Error(rewind::str(program, " ", arguments, " failed"));
  return nlohmann::json::parse(text);
}

}  // namespace support
