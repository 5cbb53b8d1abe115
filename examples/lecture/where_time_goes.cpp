// Where a training step's time goes: ShuffleNet V1 (1x, 3 groups) and MobileNetV2 (1x), by class of operator, as a stacked bar.
// Nets that were designed for few FLOPs spend much of their time on what has hardly any: normalising, adding, shuffling. Computed
// one op after the other, and with convolutions that take the normalisations over (fused), where these leave the picture.
//
// --json F: {"batch", "size", "nets": [{"net", "fused", "step_ms", "flops", "share": {"convolution", "normalisation",
// "element-wise", "data movement", "other", "framework"}, "flops_share": {...}, "loading_share"}]}; shares are of 1.

#include "../support/progress.h"

#include <CLI/CLI.hpp>

namespace rw = rewind;

namespace {

struct Settings {
  int batch = 8, size = 128, steps = 5;
  std::string json;
};

const char* const parts[] = {"convolution", "normalisation", "element-wise", "data movement", "other", "framework"};

const char* part_of(rw::Kind kind) {
  switch (kind) {
    case rw::Kind::contraction: return parts[0];
    case rw::Kind::normalisation: return parts[1];
    case rw::Kind::elementwise: return parts[2];
    case rw::Kind::movement: return parts[3];  // ShuffleNet's shuffles, concatenations, slices
    default: return parts[4];                  // reductions, random numbers, the optimizer
  }
}

/// Pictures of noise: enough to read.
rw::data::Dataset pictures(const Settings& s) {
  const int n = 4 * s.batch;
  rw::data::Dataset set{
      .name = "noise", .classes = 1000, .shape = {n, s.size, s.size, 3}, .pixels = rw::data::Bytes(3UL * n * s.size * s.size)};
  std::uint32_t state = 1;
  for (std::uint8_t& pixel : set.pixels.values()) pixel = static_cast<std::uint8_t>((state = state * 1664525 + 1013904223) >> 24);
  set.labels = rw::zeros({n}, rw::int64);
  return set;
}

nlohmann::json measure(const char* name, bool fused, const Settings& s) {
  rw::random::seed(1);
  rw::nn::Sequential net = rw::nn::models::make(name, {.classes = 1000, .size = s.size});
  net.fuse(fused);
  rw::optim::SGD sgd{net.parameters(), {.lr = 1e-3, .momentum = 0.9}};
  rw::data::DataLoader loader{pictures(s), {.batch = s.batch}};
  const rw::Profile p = rw::profile(net, rw::randn({s.batch, s.size, s.size, 3}), sgd,
                                    {.steps = s.steps, .latency_runs = 0, .throughput = false, .loader = &loader});
  nlohmann::json share, flops;
  for (const char* part : parts) share[part] = flops[part] = 0.0;
  double all = 0;
  for (const rw::ClassRow& row : p.classes) {
    const char* part = part_of(row.kind);
    share[part] = share[part].get<double>() + row.work.share;
    flops[part] = flops[part].get<double>() + row.flops_share;
    all += row.work.share;
  }
  share["framework"] = std::max(0.0, 1 - all);

  std::printf("%s, %s\n", name, fused ? "fused" : "one op after the other");
  for (const char* part : parts) {
    const double t = share[part].get<double>();
    std::printf("  %-14s %5.1f %% of the time  %5.1f %% of the FLOPs  %s\n", part, 100 * t, 100 * flops[part].get<double>(),
                std::string(static_cast<std::size_t>(60 * t + 0.5), '#').c_str());
  }
  const double loading = p.epoch.seconds > 0 ? p.epoch.waiting / p.epoch.seconds : 0;
  std::printf("  a step %.1f ms; an epoch waits %.1f %% of its time for data\n\n", 1e3 * p.total.median, 100 * loading);
  return {{"net", name},    {"fused", fused},       {"step_ms", 1e3 * p.total.median}, {"flops", p.total.flops},
          {"share", share}, {"flops_share", flops}, {"loading_share", loading}};
}

}  // namespace

int main(int argc, char** argv) {
  Settings s;
  CLI::App app{"Where a training step's time goes, by class of operator"};
  app.add_option("--batch", s.batch)->check(CLI::PositiveNumber);
  app.add_option("--size", s.size, "height and width of the images")->check(CLI::PositiveNumber);
  app.add_option("--steps", s.steps, "timed steps of each")->check(CLI::PositiveNumber);
  app.add_option("--json", s.json, "write the results to this file");
  CLI11_PARSE(app, argc, argv);

  return support::run([&] {
    nlohmann::json nets = nlohmann::json::array();
    for (const char* name : {"shufflenet_v1", "mobilenet_v2"})
      for (const bool fused : {false, true}) nets.push_back(measure(name, fused, s));
    support::write_json(s.json, {{"batch", s.batch}, {"size", s.size}, {"nets", nets}});
  });
}
