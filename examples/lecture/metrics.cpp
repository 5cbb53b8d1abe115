// What a metric hides. Parameters, FLOPs, bytes, memory, latency and throughput of the zoo: six ways to rank the same nets, and
// Spearman's correlation between any two of the rankings (1: the same order, 0: unrelated, -1: the opposite order). Over a wide
// range of nets all metrics agree; among the half with the fewest FLOPs, where one has to choose, they agree less.
//
// --json F: {"size", "batch", "threads", "models": [{"model", "parameters", "flops", "bytes_moved", "peak_bytes", "latency_ms",
// "images_per_second"}], "spearman": {"all" | "fewest_flops": {A: {B: r}}}}. flops and bytes_moved: one image forward, in
// evaluation. peak_bytes: all that is live in a training step without an optimizer, of a batch. In "spearman" less throughput
// ranks as a larger cost, like more of the others. docs/plots/metrics.py draws scatter plots of F.

#include "../support/measure.h"
#include "../support/options.h"
#include "../support/spearman.h"

#include <set>

namespace rw = rewind;
namespace models = rw::nn::models;

namespace {

struct Settings {
  std::vector<std::string> models{"alexnet",         "vgg16",         "resnet18",           "resnet50",
                                  "mobilenet_v1",    "mobilenet_v2",  "mobilenet_v3_large", "mobilenet_v3_small",
                                  "efficientnet_b0", "shufflenet_v1", "shufflenet_v2",      "squeezenet1_1",
                                  "mnasnet",         "densenet121"};
  int size = 64, batch = 16, rounds = 5;
  std::string json;
};

constexpr const char* metrics[] = {"parameters", "flops", "bytes_moved", "peak_bytes", "latency_ms", "images_per_second"};

nlohmann::json measure(const std::string& name, const Settings& s) {
  rw::nn::Sequential net = models::make(name, {.size = s.size});
  const rw::DryRun training = rw::dry_run([&] {
    rw::backward(rw::cross_entropy(net(rw::empty(models::input_shape(name, s.batch, s.size))), rw::empty({s.batch}, rw::int64)));
  });
  const rw::NoGrad no_grad;
  net.eval();
  const rw::Tensor one = rw::randn(models::input_shape(name, 1, s.size)),
                   many = rw::randn(models::input_shape(name, s.batch, s.size));
  const rw::DryRun image = rw::dry_run([&] { net(one); });
  const double seconds_one = support::seconds_of(s.rounds, [&] { net(one); }),
               seconds_many = support::seconds_of(s.rounds, [&] { net(many); });
  return {{"model", name},
          {"parameters", rw::count_elements(net.parameters())},
          {"flops", image.flops},
          {"bytes_moved", image.bytes_moved},
          {"peak_bytes", training.peak.total},
          {"latency_ms", 1e3 * seconds_one},
          {"images_per_second", s.batch / seconds_many}};
}

nlohmann::json correlations(const char* title, const std::vector<nlohmann::json>& list) {
  std::map<std::string, std::vector<double>> costs;
  for (const std::string metric : metrics)
    for (const auto& model : list) {
      const double value = model[metric].get<double>();
      costs[metric].push_back(metric == "images_per_second" ? -value : value);
    }
  nlohmann::json table;
  std::printf("\nSpearman's rank correlation, %s\n%-18s", title, "");
  for (const char* metric : metrics) std::printf(" %17s", metric);
  for (const char* row : metrics) {
    std::printf("\n%-18s", row);
    for (const char* column : metrics) {
      const double r = support::spearman(costs[row], costs[column]);
      table[row][column] = r;
      std::printf(" %17.2f", r);
    }
  }
  std::printf("\n");
  return table;
}

}  // namespace

int main(int argc, char** argv) {
  Settings s;
  CLI::App app{"Six metrics of the zoo, and how far they agree"};
  app.add_option("--models", s.models, "names, separated by commas; at least three")
      ->expected(3, 1000)
      ->delimiter(',')
      ->type_name("NAME,...");
  app.add_option("--size", s.size, "height and width of the images")->check(support::positive);
  app.add_option("--batch", s.batch, "for memory and throughput")->check(support::positive);
  app.add_option("--rounds", s.rounds, "of each measurement")->check(support::positive);
  app.add_option("--json", s.json, "write the results to this file");
  CLI11_PARSE(app, argc, argv);
  return support::run({s.json}, [&] {
    if (std::set(s.models.begin(), s.models.end()).size() != s.models.size()) rw::fail("--models: name each net once");
    nlohmann::json results{{"size", s.size}, {"batch", s.batch}, {"threads", rw::parallel::threads()}};
    std::printf("%-20s %10s %10s %10s %12s %10s %10s\n", "", "parameters", "MFLOPs", "MB moved", "peak MB", "latency ms",
                "images/s");
    std::vector<nlohmann::json> list;
    for (const std::string& name : s.models) {
      const nlohmann::json m = measure(name, s);
      const auto number = [&](const char* key) { return m[key].get<double>(); };
      std::printf("%-20s %10.0f %10.1f %10.1f %12.1f %10.2f %10.0f\n", name.c_str(), number("parameters"), 1e-6 * number("flops"),
                  1e-6 * number("bytes_moved"), 1e-6 * number("peak_bytes"), number("latency_ms"), number("images_per_second"));
      list.push_back(m);
    }
    results["models"] = list;
    results["spearman"]["all"] = correlations("all", list);
    std::ranges::sort(list, {}, [](const nlohmann::json& m) { return m["flops"].get<std::int64_t>(); });
    list.resize((list.size() + 1) / 2);
    results["spearman"]["fewest_flops"] = correlations("the half with the fewest FLOPs", list);
    support::write_json(s.json, results);
  });
}
