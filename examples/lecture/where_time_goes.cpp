// Where a training step's time goes, by class of operator, as stacked bars: ShuffleNet V1 (1x, 3 groups), MobileNetV2 (1x) and a
// ResNet. Nets that were designed for few FLOPs spend much of their time on what has hardly any: normalising, adding, shuffling.
// Computed one op after the other, with convolutions that take the normalisations over (fused), and by PyTorch.
//
// --json F: {"batch", "size", "nets": [{"net", "by", "step_ms", "share": {PART: of the time}, "flops_share", "bytes_share"}]}.
// by: "unfused", "fused"; "PyTorch" where that is installed, with its version, step_ms and share, without loading; "PyTorch,
// published" (Ivanov et al. 2021), with three parts of share and flops_share. PART: as in `parts`. Shares are of 1.

#include "../support/options.h"
#include "../support/peer.h"
#include "../support/progress.h"

namespace rw = rewind;

namespace {

const char* const parts[] = {"convolution", "normalisation", "element-wise", "data movement", "other", "loading", "framework"};
constexpr char marks[] = "#=+moL.";

const char* part_of(rw::Kind kind) {
  switch (kind) {
    case rw::Kind::contraction: return parts[0];  // the classifier's matrix product too
    case rw::Kind::normalisation: return parts[1];
    case rw::Kind::elementwise: return parts[2];
    case rw::Kind::movement: return parts[3];  // ShuffleNet's shuffles, concatenations, slices; the way back through pools
    default: return parts[4];                  // reductions, random numbers, the optimizer
  }
}

/// Black pictures: what it takes to read them does not depend on what is to be seen.
rw::data::Dataset pictures(int n, int size) {
  rw::data::Bytes pixels(3UL * n * size * size);
  std::ranges::fill(pixels.values(), 0);
  return {.classes = 10, .shape = {n, size, size, 3}, .pixels = std::move(pixels), .labels = rw::zeros({n}, rw::int64)};
}

rw::Profile profile(const std::string& name, int size, bool fused, int batch, int steps) {
  rw::random::seed(1);
  rw::nn::Sequential net = rw::nn::models::make(name, {.size = size});
  net.fuse(fused);
  rw::optim::SGD sgd{net.parameters(), {.lr = 1e-3, .momentum = 0.9}};
  rw::data::DataLoader loader{pictures(4 * batch, size), {.batch = batch}};
  return rw::profile(net, rw::randn({batch, size, size, 3}), sgd,
                     {.steps = steps, .latency_runs = 0, .throughput = false, .loader = &loader});
}

/// Shares of an epoch: of its steps, and of the time in which they wait for data.
nlohmann::json shares(const std::string& name, const std::string& by, const rw::Profile& p) {
  const double loading = p.epoch.waiting / p.epoch.seconds;
  std::map<std::string, double> time{{"loading", loading}, {"framework", (1 - loading) * (1 - p.total.share)}}, flops, bytes;
  for (const rw::ClassRow& c : p.classes) {
    time[part_of(c.kind)] += (1 - loading) * c.work.share;
    flops[part_of(c.kind)] += c.flops_share;
    bytes[part_of(c.kind)] += c.bytes_share;
  }
  const double ms = 1e3 * rw::percentile(p.step.plain_seconds, 0.5);  // of whole steps that nobody watches, as in classes.py
  return {{"net", name}, {"by", by}, {"step_ms", ms}, {"share", time}, {"flops_share", flops}, {"bytes_share", bytes}};
}

nlohmann::json published(const rw::Profile& p) {
  nlohmann::json row{{"net", "a transformer's layer"}, {"by", "PyTorch, published"}};
  for (const rw::ClassRow& c : p.classes) {
    if (c.published_time < 0) continue;
    row["share"][part_of(c.kind)] = c.published_time / 100;
    row["flops_share"][part_of(c.kind)] = c.published_flops / 100;
  }
  return row;
}

void print(const nlohmann::json& row) {
  std::printf("\n%s, %s", row["net"].get<std::string>().c_str(), row["by"].get<std::string>().c_str());
  if (row.contains("step_ms")) std::printf(", %.1f ms a step", row["step_ms"].get<double>());
  for (const auto& [key, title] : {std::pair{"flops_share", "FLOPs %"}, {"bytes_share", "bytes %"}, {"share", "time %"}}) {
    const auto known = row.value(key, std::map<std::string, double>());
    if (known.empty()) continue;
    std::printf("\n  %-8s", title);
    for (const char* part : parts) known.contains(part) ? std::printf(" %13.2f", 100 * known.at(part)) : std::printf("%14s", "");
  }
  std::string bar;
  double end = 0;
  for (std::size_t i = 0; i < std::size(parts); ++i) {
    end += row["share"].value(parts[i], 0.0);
    const double columns = 96 * std::clamp(end, 0.0, 1.0);
    bar.resize(static_cast<std::size_t>(columns + 0.5), marks[i]);
  }
  std::printf("\n           %s\n", bar.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  int batch = 8, size = 128, steps = 5;
  std::string json;
  CLI::App app{"Where a training step's time goes, by class of operator"};
  app.add_option("--batch", batch)->check(support::positive);
  app.add_option("--size", size, "height and width of the images; of the ResNet's always 32")->check(support::positive);
  app.add_option("--steps", steps, "timed steps of each")->check(support::positive);
  app.add_option("--json", json, "write the results to this file");
  CLI11_PARSE(app, argc, argv);

  return support::run({json}, [&] {
    std::vector<nlohmann::json> rows;
    const std::pair<const char*, int> nets[] = {{"shufflenet_v1", size}, {"mobilenet_v2", size}, {"resnet18_cifar", 32}};
    for (const auto& [name, pixels] : nets)
      for (const bool fused : {false, true}) {
        const rw::Profile p = profile(name, pixels, fused, batch, steps);
        if (rows.empty()) rows.push_back(published(p));
        rows.push_back(shares(name, fused ? "fused" : "unfused", p));
      }
    const std::string arguments =
        rw::str(rw::parallel::threads(), " ", batch, " shufflenet_v1:", size, " mobilenet_v2:", size, " resnet18_cifar:32");
    for (const nlohmann::json& row : support::peer("classes.py", arguments)) rows.push_back(row);

    std::printf("Batches of %d; images of %d x %d pixels, the ResNet's of 32 x 32\n\n          ", batch, size, size);
    for (std::size_t i = 0; i < std::size(parts); ++i) std::printf(" %11s %c", parts[i], marks[i]);
    std::printf("\n");
    std::ranges::for_each(rows, print);
    support::write_json(json, {{"batch", batch}, {"size", size}, {"nets", rows}});
  });
}
