// Full against depthwise against depthwise-separable convolution of c channels with a k x k kernel on d x d pixels: what each
// costs by formula, what the library counts, and what a clock says. Then what is inside an inverted bottleneck.
//
// --json F: {"c", "k", "d", "batch", "convolutions": [{"name", "parameters", "flops", "formula": {"parameters", "flops"},
// "bytes_moved", "forward_ms", "forward_backward_ms", "gflops_per_second"}], "bottleneck": [{"part", "parameters", "flops",
// "bytes_moved", "forward_ms", "backward_ms"}]}. flops are those of one image forward, times those of the batch; bytes_moved too,
// forward among the convolutions, forward and backward in the bottleneck.

#include "../support/layer_costs.h"
#include "../support/measure.h"
#include "../support/options.h"

namespace rw = rewind;
namespace nn = rw::nn;

namespace {

struct Settings {
  int c = 128, k = 3, d = 28, batch = 16, expand = 6, rounds = 15;
  std::string json;
};

nlohmann::json measure(const char* name, nn::Module& net, std::int64_t parameters, std::int64_t flops, const Settings& s) {
  const rw::Tensor x = rw::randn({s.batch, s.d, s.d, s.c}).set_requires_grad();  // as in the middle of a net
  const rw::Tensor g = rw::randn(x.shape());
  const auto forward = [&] {
    const rw::NoGrad no_grad;
    net(x);
  };
  const rw::DryRun plan = rw::dry_run(forward);
  const double seconds = support::seconds_of(s.rounds, forward);
  const double both = support::seconds_of(s.rounds, [&] {
    x.set_grad({});
    rw::backward(net(x), g);
  });
  const std::int64_t counted = rw::count_elements(net.parameters()), image = plan.flops / s.batch;
  const double rate = 1e-9 * static_cast<double>(plan.flops) / seconds;
  std::printf("%-22s %8lld = %-8lld %12lld = %-12lld %9.1f %11.2f %14.2f %10.0f %13.1f\n", name, static_cast<long long>(counted),
              static_cast<long long>(parameters), static_cast<long long>(image), static_cast<long long>(flops),
              1e-6 * static_cast<double>(plan.bytes_moved), 1e3 * seconds, 1e3 * both, rate,
              static_cast<double>(plan.flops) / static_cast<double>(plan.bytes_moved));
  return {{"name", name},
          {"parameters", counted},
          {"flops", image},
          {"formula", {{"parameters", parameters}, {"flops", flops}}},
          {"bytes_moved", plan.bytes_moved},
          {"forward_ms", 1e3 * seconds},
          {"forward_backward_ms", 1e3 * both},
          {"gflops_per_second", rate}};
}

nlohmann::json convolutions(const Settings& s) {
  const std::int64_t c = s.c, k2 = s.k * s.k, d2 = s.d * s.d;
  const nn::DepthwiseConv2dOptions by_channel{.channels = s.c, .kernel = s.k, .padding = s.k / 2, .bias = false};
  nn::Conv2d full{{.in = s.c, .out = s.c, .kernel = s.k, .padding = s.k / 2, .bias = false}};
  nn::DepthwiseConv2d depthwise{by_channel};
  nn::Sequential separable{nn::DepthwiseConv2d{by_channel}, nn::Conv2d{{.in = s.c, .out = s.c, .bias = false}}};
  std::printf("FLOPs of an image, MB and ms of the batch of %d\n", s.batch);
  std::printf("%-22s %19s %27s %9s %11s %14s %10s %13s\n", "", "parameters = formula", "FLOPs an image = formula", "MB forward",
              "ms forward", "and backward", "GFLOP/s", "FLOPs a byte");
  return {measure("full", full, c * c * k2, 2 * c * c * k2 * d2, s), measure("depthwise", depthwise, c * k2, 2 * c * k2 * d2, s),
          measure("depthwise-separable", separable, c * k2 + c * c, 2 * (c * k2 + c * c) * d2, s)};
}

nlohmann::json bottleneck(const Settings& s) {
  nn::InvertedBottleneck block{{.in = s.c, .out = s.c, .expand = s.expand, .kernel = s.k}};
  block.fuse(false);  // one op after the other, so that each can be seen
  const rw::Tensor x = rw::randn({s.batch, s.d, s.d, s.c}).set_requires_grad(), g = rw::randn(x.shape());
  std::map<std::string, support::LayerCosts::Layer> least;  // times, of all rounds
  for (int round = 0; round <= s.rounds; ++round) {
    support::LayerCosts costs;
    const rw::ObserverScope scope(costs);
    x.set_grad({});
    rw::backward(block(x), g);
    if (round <= 1) least = costs.layers;  // the first one only warms
    for (auto& [path, part] : least) {
      part.forward = std::min(part.forward, costs.layers[path].forward);
      part.backward = std::min(part.backward, costs.layers[path].backward);
    }
  }
  std::printf(
      "\nAn inverted bottleneck, %d -> %d -> %d channels, every op by itself; FLOPs of an image forward; of the batch, MB moved "
      "forward and\nbackward, and ms\n",
      s.c, s.expand * s.c, s.c);
  nlohmann::json list;
  for (const nn::LayerSummary& layer : nn::summarize(block, x.shape()).layers) {
    const auto found = least.find(layer.path);
    if (found == least.end()) continue;
    const std::string name = layer.path.empty() ? "add the shortcut" : layer.path + " " + layer.type;
    const auto& [path, part] = *found;
    const auto flops = part.flops / s.batch, bytes = part.bytes;
    const double forward = 1e3 * part.forward, backward = 1e3 * part.backward;
    std::printf("  %-26s %8lld parameters %12lld FLOPs %7.1f MB %7.2f ms forward %7.2f ms backward\n", name.c_str(),
                static_cast<long long>(layer.parameters), static_cast<long long>(flops), 1e-6 * static_cast<double>(bytes), forward,
                backward);
    list.push_back({{"part", name}, {"parameters", layer.parameters}, {"flops", flops}, {"bytes_moved", bytes}});
    list.back().update({{"forward_ms", forward}, {"backward_ms", backward}});
  }
  return list;
}

}  // namespace

int main(int argc, char** argv) {
  Settings s;
  CLI::App app{"Convolutions, counted and measured"};
  app.add_option("--channels", s.c)->check(support::positive);
  app.add_option("--kernel", s.k, "odd")->check(support::positive)->check([](const std::string& k) {
    return k.empty() || (k.back() - '0') % 2 == 0 ? "must be odd, so that images keep their size" : "";
  });
  app.add_option("--size", s.d, "height and width")->check(support::positive);
  app.add_option("--batch", s.batch)->check(support::positive);
  app.add_option("--expand", s.expand, "of the bottleneck")->check(support::positive);
  app.add_option("--rounds", s.rounds, "of each measurement")->check(support::positive);
  app.add_option("--json", s.json, "write the results to this file");
  CLI11_PARSE(app, argc, argv);
  return support::run({s.json}, [&] {
    nlohmann::json results{{"c", s.c}, {"k", s.k}, {"d", s.d}, {"batch", s.batch}};
    results["convolutions"] = convolutions(s);
    results["bottleneck"] = bottleneck(s);
    support::write_json(s.json, results);
  });
}
