#include <rewind/autograd/grad_mode.h>
#include <rewind/autograd/schedule/execute.h>
#include <rewind/nn/sequential.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <span>
#include <typeinfo>
#include <utility>

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
  Run(std::vector<Stage> stages, const Pending& given, std::span<Sequential* const> chains)
      : stages_(std::move(stages)), given_(given) {
    lives_.reserve(chains.size());
    for (Sequential* chain : chains) {
      if (chain->life_ == nullptr) chain->life_ = new Life;
      ++chain->life_->owners;
      lives_.push_back(chain->life_);
    }
  }
  ~Run() override {
    for (Life* life : lives_) life->release();
  }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;
  schedule::Value run(int l, schedule::Value a) override {
    if (std::ranges::any_of(lives_, [](const Life* life) { return life->over.load(); }))
      fail(str("recompute: stage ", l,
               " is needed again, but its module was destroyed; the module must live until backward is done"));
    const Stage& stage = stages_[static_cast<std::size_t>(l - 1)];
    return l == 1 ? stage(std::move(a), given_) : stage(std::move(a));
  }

 private:
  std::vector<Stage> stages_;
  Pending given_;
  std::vector<Life*> lives_;  // of the chains whose children run
};

Sequential::Sequential(Sequential&& other) noexcept
    : Module(std::move(other)),
      children_(std::exchange(other.children_, {})),
      recompute_(std::exchange(other.recompute_, Recompute::vanilla())),
      life_(std::exchange(other.life_, nullptr)) {
  change_structure();
}

Sequential& Sequential::operator=(Sequential&& other) noexcept {
  if (this == &other) return *this;
  Sequential from(std::move(other));  // it may be below this one, and go with what this one had
  clear();
  Module::operator=(std::move(from));
  children_ = std::exchange(from.children_, {});
  choose(std::exchange(from.recompute_, Recompute::vanilla()));
  life_ = std::exchange(from.life_, nullptr);
  return *this;
}

Sequential::~Sequential() { clear(); }

void Sequential::clear() {
  change_structure();
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
  change_structure();
  static_cast<void>(owner.release());
}

void Sequential::extend(Sequential other) {
  for (Child& c : other.children_) adopt(std::to_string(size()), std::exchange(c.module, nullptr));
}

Module& Sequential::operator[](int i) const {
  if (i < 0 || i >= size()) fail(str("Sequential: child ", i, " does not exist; there are ", size()));
  return *children_[static_cast<std::size_t>(i)].module;
}

std::vector<Sequential*> Sequential::chains() {
  // Not for a class derived from Sequential, whose forward() may do more.
  return typeid(*this) == typeid(Sequential) ? std::vector{this} : std::vector<Sequential*>{};
}

void Sequential::append_parts(std::vector<Part>& all, std::vector<Sequential*>& told) const {
  for (const Child& c : children_) {
    const std::vector<Sequential*> chains = c.module->chains();
    if (chains.empty())
      all.push_back({c.module, told});
    else
      c.module->refuse_budget();
    for (Sequential* s : chains) {
      s->refuse_budget();
      const bool own = !s->recompute_.is_vanilla();
      if (own) told.push_back(s);
      s->append_parts(all, told);
      if (own) told.pop_back();
    }
  }
}

const std::vector<Sequential*>& Sequential::taken_apart() {
  taken_apart_again_.refresh(*this, [&] {
    std::vector<Sequential*> all{this};
    for (std::size_t i = 0; i < all.size(); ++i)
      for (const Child& c : all[i]->children_)
        for (Sequential* s : c.module->chains()) all.push_back(s);
    taken_apart_ = std::move(all);
  });
  return taken_apart_;
}

const ChainStages& Sequential::stages(bool open) const {
  Grouped& g = grouped_[open ? 1 : 0];
  g.derived.refresh(*this, [&] {
    std::vector<Part> parts;
    std::vector<Sequential*> told;
    append_parts(parts, told);
    g.stages = Stage::group(parts, open);
  });
  return g.stages;
}

void Sequential::choose(Recompute how) {
  if (how.is_vanilla() != recompute_.is_vanilla()) change_structure();  // a chain that was told something is grouped by itself
  recompute_ = std::move(how);
  actions_.clear();
  planned_for_ = -1;
}

Tensor Sequential::forward(Tensor x) {
  if (probe_ != nullptr) *std::exchange(probe_, nullptr) = x;
  return run(stages(), {std::move(x)}).x;
}

Pending Sequential::forward_pending(Pending p) {
  refuse_budget();
  if (p.any() && !takes_pending()) fail("Sequential: nothing here takes a pending normalisation; settle() it first");
  if (probe_ != nullptr) *std::exchange(probe_, nullptr) = p.any() ? settle(p) : p.x;
  const ChainStages& chain = stages(true);
  schedule::Value x{std::move(p.x), std::move(p.mean), std::move(p.var)};
  x = run(chain.all, std::move(x), p);
  return chain.left ? chain.left->left(std::move(x)) : Pending{std::move(x.x)};
}

bool Sequential::takes_pending() const {
  const std::vector<Stage>& chain = stages(true).all;
  return !chain.empty() && chain.front().takes_pending();
}

schedule::Value Sequential::run(std::span<const Stage> chain, schedule::Value x, const Pending& given) {
  if (recompute_.is_vanilla() || chain.empty() || grad_mode() != GradMode::record) {
    for (const Stage& stage : chain) x = &stage == chain.data() ? stage(std::move(x), given) : stage(std::move(x));
    return x;
  }
  if (const int n = static_cast<int>(chain.size()); planned_for_ != n) {
    actions_ = recompute_.actions_for(n);
    planned_for_ = n;
  }
  return schedule::execute(new Run({chain.begin(), chain.end()}, given, taken_apart()), actions_, std::move(x));
}

void Sequential::describe(Fields& f) {
  for (const Child& c : children_) f.child(c.name, *c.module);
}

}  // namespace rewind_lib::nn
