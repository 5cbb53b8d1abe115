#include <rewind/autograd/grad_mode.h>
#include <rewind/autograd/schedule/execute.h>
#include <rewind/nn/layers.h>
#include <rewind/nn/sequential.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <typeinfo>

namespace rewind_lib::nn {

/// Outlives the children, so that a backward that comes too late can tell.
struct Sequential::Life {
  std::atomic<int> owners{1};
  std::atomic<bool> over{false};
  void release() {
    if (--owners == 0) delete this;
  }
};

/// The stages, as the executor of schedules runs them.
class Sequential::Run final : public schedule::Stages {
 public:
  Run(std::vector<Stage> stages, Life* life) : stages_(std::move(stages)), life_(life) { ++life_->owners; }
  ~Run() override { life_->release(); }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;
  Tensor run(int l, Tensor a) override {
    if (life_->over)
      fail(str("recompute: stage ", l,
               " is needed again, but its module was destroyed; the module must live until backward is done"));
    return stages_[static_cast<std::size_t>(l - 1)](std::move(a));
  }

 private:
  std::vector<Stage> stages_;
  Life* life_;
};

Sequential::Sequential(Sequential&& other) noexcept
    : Module(std::move(other)),
      children_(std::exchange(other.children_, {})),
      recompute_(std::exchange(other.recompute_, Recompute::vanilla())),
      life_(std::exchange(other.life_, nullptr)) {}

Sequential& Sequential::operator=(Sequential&& other) noexcept {
  if (this == &other) return *this;
  clear();
  Module::operator=(std::move(other));
  children_ = std::exchange(other.children_, {});
  choose(std::exchange(other.recompute_, Recompute::vanilla()));
  life_ = std::exchange(other.life_, nullptr);
  return *this;
}

Sequential::~Sequential() { clear(); }

void Sequential::clear() {
  for (const Child& c : children_) delete c.module;
  children_.clear();
  if (life_ == nullptr) return;
  life_->over = true;
  std::exchange(life_, nullptr)->release();
}

void Sequential::adopt(std::string name, Module* owned) {
  std::unique_ptr<Module> owner(owned);
  if (name.empty() || name.find('.') != name.npos)
    fail(str("Sequential: a child's name must not be empty or hold a dot, got '", name, "'"));
  if (std::ranges::any_of(children_, [&](const Child& c) { return c.name == name; }))
    fail(str("Sequential: there is already a child named '", name, "'"));
  children_.push_back({std::move(name), owned});
  static_cast<void>(owner.release());
}

Module& Sequential::operator[](int i) const {
  if (i < 0 || i >= size()) fail(str("Sequential: child ", i, " does not exist; there are ", size()));
  return *children_[static_cast<std::size_t>(i)].module;
}

namespace {

Epilogue epilogue_of(const Module* module) {
  if (dynamic_cast<const ReLU*>(module) != nullptr) return Epilogue::relu;
  if (dynamic_cast<const ReLU6*>(module) != nullptr) return Epilogue::relu6;
  return Epilogue::none;
}

}  // namespace

Tensor Stage::operator()(Tensor x) const {
  Tensor y = module->call(std::move(x), fused, then);
  if (activation != nullptr) activation->tell_observers(y);
  return y;
}

std::vector<Sequential*> Sequential::chains() {
  // Not for a class derived from Sequential, whose forward() may do more.
  return typeid(*this) == typeid(Sequential) ? std::vector{this} : std::vector<Sequential*>{};
}

void Sequential::append_modules(std::vector<Module*>& all) const {
  for (const Child& c : children_) {
    const std::vector<Sequential*> parts = c.module->chains();
    if (!parts.empty() && std::ranges::all_of(parts, [](const Sequential* s) { return s->recompute_.is_vanilla(); })) {
      for (const Sequential* s : parts) s->append_modules(all);
    } else {
      all.push_back(c.module);
    }
  }
}

std::vector<Stage> Sequential::stages() const {
  std::vector<Module*> modules;
  append_modules(modules);
  std::vector<Stage> chain;
  for (std::size_t i = 0; i < modules.size(); ++i) {
    chain.push_back({modules[i]});
    Stage& stage = chain.back();
    const Epilogue then = i + 1 < modules.size() ? epilogue_of(modules[i + 1]) : Epilogue::none;
    if (then == Epilogue::none) continue;
    stage.fused = dynamic_cast<Fusible*>(modules[i]);
    if (stage.fused == nullptr) continue;
    stage.activation = modules[++i];
    stage.then = then;
  }
  return chain;
}

void Sequential::choose(Recompute how) {
  recompute_ = std::move(how);
  actions_.clear();
  planned_for_ = -1;
}

Tensor Sequential::forward(Tensor x) {
  if (probe_ != nullptr) *std::exchange(probe_, nullptr) = x;
  std::vector<Stage> chain = stages();
  if (recompute_.is_vanilla() || chain.empty() || grad_mode() != GradMode::record) {
    for (const Stage& stage : chain) x = stage(std::move(x));
    return x;
  }
  if (const int n = static_cast<int>(chain.size()); planned_for_ != n) {
    actions_ = recompute_.actions_for(n);
    planned_for_ = n;
  }
  if (life_ == nullptr) life_ = new Life;
  return schedule::execute(new Run(std::move(chain), life_), actions_, std::move(x));
}

void Sequential::describe(Fields& f) {
  for (const Child& c : children_) f.child(c.name, *c.module);
}

}  // namespace rewind_lib::nn
