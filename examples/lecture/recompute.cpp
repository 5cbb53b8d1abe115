// The lecture's three pictures, live: a chain of equal stages that remembers everything, only its input, or checkpoints. Each
// schedule is drawn; its peak is predicted by a dry run, then measured; and the gradients are the same to the last bit.
//
// --json F: {"stages", "channels", "size", "batch", "strategies": [{"strategy", "schedule", "predicted_peak_bytes",
// "measured_peak_bytes", "activation_bytes", "recomputed_forwards", "step_ms", "gradient_hash"}]}

#include "../support/compare.h"
#include "../support/measure.h"
#include "../support/options.h"

#include <rewind/autograd/schedule/draw.h>
#include <rewind/autograd/schedule/simulate.h>

namespace rw = rewind;

namespace {

struct Settings {
  int stages = 9, channels = 32, size = 32, batch = 16, rounds = 5;
  std::string json;
};

rw::nn::Sequential chain_of(const Settings& s) {
  rw::nn::Sequential net;
  for (int stage = 0; stage < s.stages; ++stage)
    net.add(rw::nn::Conv2d{{.in = s.channels, .out = s.channels, .kernel = 3, .padding = 1}});
  return net;
}

nlohmann::json train(rw::nn::Sequential& net, const rw::Tensor& x, const rw::schedule::Chain& chain, const rw::Recompute& how,
                     const Settings& s) {
  net.recompute(how);
  const auto step = [&] { rw::backward(rw::mean(rw::square(net(x)))); };
  const auto drop_gradients = [&] {
    for (const rw::Parameter& p : net.parameters()) p.value.set_grad({});
  };
  const rw::DryRun plan = rw::dry_run(step);
  rw::memory::reset_peak();
  step();
  const rw::memory::Usage peak = rw::memory::peak();
  const std::uint64_t gradients = support::compare::hash_gradients(net);
  const double seconds = support::seconds_of(s.rounds, [&] {
    drop_gradients();
    step();
  });
  drop_gradients();

  const auto schedule = rw::schedule::with_claims(chain, how.name(), how.actions_for(chain.n()));
  const double again =
      static_cast<double>(plan.flops_in(rw::Phase::recompute)) / static_cast<double>(plan.flops_in(rw::Phase::forward));
  const std::size_t activations = peak[rw::Category::activation];
  std::printf("\n%s\npredicted %s, measured %s, of it activations %s; %.2f forwards more; %.1f ms a step; gradients %016llx\n",
              rw::schedule::draw(chain, schedule, 100, 20).c_str(), rw::memory::human(plan.peak.total).c_str(),
              rw::memory::human(peak.total).c_str(), rw::memory::human(activations).c_str(), again, 1e3 * seconds,
              static_cast<unsigned long long>(gradients));
  return {{"strategy", how.name()},
          {"schedule", rw::schedule::to_string(schedule.actions)},
          {"predicted_peak_bytes", plan.peak.total},
          {"measured_peak_bytes", peak.total},
          {"activation_bytes", activations},
          {"recomputed_forwards", again},
          {"step_ms", 1e3 * seconds},
          {"gradient_hash", std::to_string(gradients)}};
}

}  // namespace

int main(int argc, char** argv) {
  Settings s;
  CLI::App app{"Vanilla, low memory, checkpoints: drawn, predicted and measured"};
  app.add_option("--stages", s.stages)->check(CLI::Range(2, 1000));
  app.add_option("--channels", s.channels)->check(support::positive);
  app.add_option("--size", s.size, "height and width")->check(support::positive);
  app.add_option("--batch", s.batch)->check(support::positive);
  app.add_option("--rounds", s.rounds, "of each measurement")->check(support::positive);
  app.add_option("--json", s.json, "write the results to this file");
  CLI11_PARSE(app, argc, argv);
  return support::run({s.json}, [&] {
    rw::nn::Sequential net = chain_of(s);
    const rw::Tensor x = rw::randn({s.batch, s.size, s.size, s.channels});
    const rw::schedule::Chain chain = rw::nn::describe_chain(net, x, rw::Costs::counted);
    std::printf("%d equal stages, an activation is %s\n", chain.n(), rw::memory::human(x.bytes()).c_str());
    std::printf("> forward, F forward recorded, < backward, - activation kept, = tape held, . nothing\n");
    std::printf("memory: tenths of the peak, # at the peak; cost: seconds at 100 GFLOP/s and 20 GB/s, counted, not measured\n");
    nlohmann::json results{{"stages", chain.n()}, {"channels", s.channels}, {"size", s.size}, {"batch", s.batch}};
    for (const auto& how : {rw::Recompute::vanilla(), rw::Recompute::low_memory(), rw::Recompute::sqrt()})
      results["strategies"].push_back(train(net, x, chain, how, s));
    support::write_json(s.json, results);
  });
}
