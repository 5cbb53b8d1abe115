// What a training step of a net costs and holds, op by op, and what this machine makes of it: the questions of a lecture on
// efficient deep learning, answered for one net.
//
// --json F: what rewind::to_json() makes of a profile, with the keys of docs/profile.md.

#include "support/compare.h"
#include "support/options.h"
#include "support/pages.h"

#include <memory>

namespace rw = rewind;

namespace {

struct Settings {
  std::string model = "mobilenet_v2_cifar", optimizer = "momentum", recompute = "vanilla", json, trace, report;
  int batch = 32, size = 0, depth = 0, classes = 0, steps = 10, rows = 20, levels = 2, threads = rw::parallel::threads();
  double width = 1;
  bool plain = false, epoch = false;
};

/// What the model was made with, but for its defaults: "width 0.5, 10 classes".
std::string options_of(const Settings& s) {
  std::string text;
  const auto add = [&](const std::string& part) { text += (text.empty() ? "" : ", ") + part; };
  if (s.width != 1) add(rw::str("width ", s.width));
  if (s.depth != 0) add(rw::str("depth ", s.depth));
  if (s.classes != 0) add(rw::str(s.classes, " classes"));
  return text;
}

void profile(const Settings& s) {
  rw::parallel::set_threads(s.threads);
  rw::random::seed(1);
  rw::nn::Sequential net =
      rw::nn::models::make(s.model, {.classes = s.classes, .size = s.size, .width = s.width, .depth = s.depth});
  net.fuse(!s.plain);
  net.recompute(rw::Recompute::parse(s.recompute));
  auto optimizer = support::compare::make_optimizer(s.optimizer, net.parameters());
  const rw::Shape shape = rw::nn::models::input_shape(s.model, s.batch, s.size);
  rw::Tensor x;
  {
    const rw::memory::CategoryScope input(rw::Category::input);
    x = rw::randn(shape);
  }

  rw::ProfileOptions options{.steps = s.steps};
  std::unique_ptr<rw::data::DataLoader> loader;
  if (s.epoch) {  // of sixteen batches of noise: what a loader costs does not depend on what it loads
    rw::Shape all = shape;
    all.set(0, 16 * shape[0]);
    const rw::memory::CategoryScope input(rw::Category::input);
    loader = std::make_unique<rw::data::DataLoader>(rw::randn(all), rw::zeros({all[0]}, rw::int64),
                                                    rw::data::LoaderOptions{.batch = s.batch, .shuffle = true});
    options.loader = loader.get();
  }
  const rw::Profile p = rw::profile(net, x, *optimizer, options);
  const std::string made_with = options_of(s);
  std::cout << s.model << (made_with.empty() ? "" : ", ") << made_with << ", " << s.optimizer << ", recompute " << s.recompute
            << "\n"
            << to_string(p, s.rows, s.levels);

  nlohmann::json j{
      {"model", s.model},         {"options", made_with},     {"batch", s.batch},    {"size", shape.rank() > 2 ? shape[1] : 0},
      {"optimizer", s.optimizer}, {"recompute", s.recompute}, {"threads", s.threads}};
  j.update(nlohmann::json::parse(rw::to_json(p)));
  support::write_json(s.json, j);
  support::write_text(s.trace, rw::chrome_trace(p));
  if (!s.report.empty()) support::write_profile_report(s.report, j, p, net, x);
}

}  // namespace

int main(int argc, char** argv) {
  Settings s;
  CLI::App app{"Profiles a training step: time, memory and energy, by op, module and class of operator"};
  app.add_option("--model", s.model);
  app.add_option("--batch", s.batch)->check(support::positive);
  app.add_option("--size", s.size, "height and width of the images")->check(support::positive);
  app.add_option("--width", s.width, "multiplies the channels of the nets that have one")->check(support::positive);
  app.add_option("--depth", s.depth, "of preresnet: 9n + 2")->check(support::positive);
  app.add_option("--classes", s.classes)->check(support::positive);
  app.add_option("--optimizer", s.optimizer)->check(CLI::IsMember({"sgd", "momentum", "adam"}));
  app.add_option("--recompute", s.recompute, "vanilla, sqrt, segments:K, budget:BYTES, ...");
  app.add_flag("--plain", s.plain, "convolutions, batch normalisations and activations one after the other, without fusion");
  app.add_flag("--epoch", s.epoch, "also an epoch of sixteen batches through the loader");
  app.add_option("--steps", s.steps, "timed steps")->check(support::positive);
  app.add_option("--threads", s.threads)->check(support::positive);
  app.add_option("--rows", s.rows, "ops and saved tensors to print")->check(support::not_negative);
  app.add_option("--levels", s.levels, "of modules to print; deeper ones are added up")->check(support::not_negative);
  app.add_option("--json", s.json, "write the results to this file");
  app.add_option("--trace", s.trace, "write Chrome trace events to this file, for ui.perfetto.dev or speedscope.app");
  app.add_option("--report", s.report, "write a page with charts to this file");
  CLI11_PARSE(app, argc, argv);
  return support::run({s.json, s.trace, s.report}, [&] { profile(s); });
}
