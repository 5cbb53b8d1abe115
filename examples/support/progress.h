#pragma once
// What the training programs share around the training itself: a progress line, Ctrl-C, and the report in JSON.

#include <rewind/report/report.h>
#include <rewind/rewind.h>

#include <nlohmann/json.hpp>

#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <string>
#include <vector>

namespace support {

using Clock = std::chrono::steady_clock;
inline double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Ctrl-C asks for an end; the step that is going on is finished, and the program reports what it has. A second one kills.
inline std::atomic<bool> interrupted{false};
inline void finish_on_interrupt() {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupted.store(true); };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &action, nullptr);
}

/// One line that rewrites itself on a terminal, and a plain line now and then elsewhere.
class Progress {
 public:
  explicit Progress(std::int64_t steps) : steps_(steps) {}

  void step(int epoch, std::int64_t samples, double loss, double accuracy) {
    ++done_;
    samples_ += samples;
    const double elapsed = seconds_since(start_), since = seconds_since(printed_);
    if (since < (terminal_ ? 0.1 : 2.0) && done_ != steps_) return;
    printed_ = Clock::now();
    const double rate = static_cast<double>(done_) / elapsed;
    std::printf("%sepoch %d  step %lld/%lld  loss %.4f  accuracy %.2f %%  %.0f images/s  %.0f s left%s",
                terminal_ ? "\r\x1b[K" : "", epoch, static_cast<long long>(done_), static_cast<long long>(steps_), loss,
                100 * accuracy, static_cast<double>(samples_) / elapsed, static_cast<double>(steps_ - done_) / rate,
                terminal_ ? "" : "\n");
    std::fflush(stdout);
  }
  void finish() const {
    if (terminal_ && done_ > 0) std::printf("\n");
  }

 private:
  std::int64_t steps_, samples_ = 0, done_ = 0;
  bool terminal_ = isatty(STDOUT_FILENO) != 0;
  Clock::time_point start_ = Clock::now(), printed_ = start_ - std::chrono::hours(1);
};

/// {"parameter": bytes, ..., "total": bytes}
inline nlohmann::json to_json(const rewind::memory::Usage& usage) {
  nlohmann::json j;
  for (int c = 0; c < rewind::category_count; ++c) j[rewind::name_of(static_cast<rewind::Category>(c))] = usage.bytes[c];
  j["total"] = usage.total;
  return j;
}

/// Writes a file that other programs read. Nothing for an empty path.
inline void write_text(const std::string& path, const std::string& text) {
  if (!path.empty()) rewind::report::write_whole(path, text);
}

/// Writes what a program has printed, for other programs. Nothing for an empty path.
inline void write_json(const std::string& path, const nlohmann::json& j) { write_text(path, j.dump(2) + "\n"); }

/// Throws for a file that cannot be written, as far as that shows beforehand. Nothing for an empty path.
inline void expect_writable(const std::string& path) {
  namespace fs = std::filesystem;
  if (path.empty()) return;
  const fs::path file = fs::absolute(path), folder = file.parent_path();
  if (fs::is_directory(file)) throw rewind::Error("cannot write " + path + ": it is a folder");
  if (!fs::is_directory(folder)) throw rewind::Error("cannot write " + path + ": there is no folder " + folder.string());
  const bool device = fs::exists(file) && !fs::is_regular_file(file);
  if (access(device ? file.c_str() : folder.c_str(), W_OK) != 0 || (fs::exists(file) && access(file.c_str(), W_OK) != 0))
    throw rewind::Error("cannot write " + path + ": permission denied");
}

/// Runs a program's body, which writes these files at its end; what goes wrong is one line on standard error and exit status 1.
template <class F>
int run(const std::vector<std::string>& files, F&& body) {
  try {
    std::ranges::for_each(files, expect_writable);  // before anything is computed in vain
    for (std::size_t i = 0; i < files.size(); ++i)
      if (!files[i].empty() && std::count(files.begin(), files.begin() + static_cast<std::ptrdiff_t>(i), files[i]) > 0 &&
          (!std::filesystem::exists(files[i]) || std::filesystem::is_regular_file(files[i])))
        throw rewind::Error("two outputs cannot be written to one file, " + files[i]);
    body();
    return 0;
  } catch (const std::exception& e) {
    std::cerr << "error: " << e.what() << "\n";
    return 1;
  }
}

}  // namespace support
