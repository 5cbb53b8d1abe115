// What a net is made of and what a training step of it would take: shapes, parameters, MACs, bytes to be saved. All from a dry
// run, so the largest net takes neither memory nor time.
//
// A net of your own works the same way, whatever module it is: rw::nn::summarize(net, {batch, 32, 32, 3}).
//
// --json F: {"parameters", "buffers", "macs", "flops", "activation_bytes_saved", "training_step_macs", "optimizer_state_bytes":
// {"sgd", "momentum", "adam"}, "layers": [{"path", "type", "output", "parameters", "buffers", "macs", "flops",
// "activation_bytes_saved"}]}. macs and flops are those of a forward of the batch, with 1 MAC = 2 FLOPs; parameters and buffers
// are elements.

#include "support/options.h"
#include "support/progress.h"

namespace rw = rewind;
namespace models = rw::nn::models;

namespace {

nlohmann::json to_json(const rw::nn::Summary& s) {
  nlohmann::json layers = nlohmann::json::array();
  for (const rw::nn::LayerSummary& layer : s.layers)
    layers.push_back({{"path", layer.path},
                      {"type", layer.type},
                      {"output", std::vector<std::int64_t>(layer.output.begin(), layer.output.end())},
                      {"parameters", layer.parameters},
                      {"buffers", layer.buffers},
                      {"macs", layer.macs},
                      {"flops", layer.flops},
                      {"activation_bytes_saved", layer.saved_bytes}});
  const auto& state = s.optimizer_state_bytes;
  return {{"parameters", s.parameters},
          {"buffers", s.buffers},
          {"macs", s.macs},
          {"flops", s.flops},
          {"activation_bytes_saved", s.activation_bytes_saved},
          {"training_step_macs", s.training_step_macs},
          {"optimizer_state_bytes", {{"sgd", state.sgd}, {"momentum", state.momentum}, {"adam", state.adam}}},
          {"layers", layers}};
}

}  // namespace

int main(int argc, char** argv) {
  std::string name = "mobilenet_v2", json, known;
  for (const models::Model& m : models::all()) known += (known.empty() ? "" : ", ") + std::string(m.name);
  models::Options options;
  int batch = 1, nesting = 99;
  CLI::App app{"Shapes, parameters, MACs and saved bytes of a net"};
  app.add_option("--model", name, known);
  app.add_option("--width", options.width, "multiplies channels")->check(support::positive);
  app.add_option("--depth", options.depth, "of preresnet: 9n + 2")->check(support::positive);
  app.add_option("--size", options.size, "height and width of the images")->check(support::positive);
  app.add_option("--classes", options.classes)->check(support::positive);
  app.add_option("--batch", batch)->check(support::positive);
  app.add_option("--nesting", nesting, "modules deeper than this are added to the one that they are in")
      ->check(support::not_negative);
  app.add_option("--json", json, "write the results to this file");
  CLI11_PARSE(app, argc, argv);

  return support::run({json}, [&] {
    const rw::ShapesOnly dry;  // the parameters take no memory either
    rw::nn::Sequential net = models::make(name, options);
    const rw::nn::Summary summary = rw::nn::summarize(net, models::input_shape(name, batch, options.size));
    std::cout << rw::nn::to_string(summary, nesting);
    support::write_json(json, to_json(summary));
  });
}
