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
  schedule::Activation run(int l, schedule::Activation a) override {
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

namespace {

/// The epilogue that stands for an activation, where what comes before can apply it to its own result.
Epilogue epilogue_of(const Module* module) {
  if (dynamic_cast<const ReLU*>(module) != nullptr) return Epilogue::relu;
  if (dynamic_cast<const ReLU6*>(module) != nullptr) return Epilogue::relu6;
  return Epilogue::none;
}

/// And where what comes before leaves a normalisation pending.
Epilogue pending_epilogue_of(const Module* module) {
  if (dynamic_cast<const Hardswish*>(module) != nullptr) return Epilogue::hardswish;
  if (dynamic_cast<const SiLU*>(module) != nullptr) return Epilogue::silu;
  return epilogue_of(module);
}

}  // namespace

const char* Stage::path() const {
  if (nested != nullptr) return nested->path();
  return module != nullptr ? module->path() : nullptr;
}

Pending Stage::load(schedule::Activation x, const Pending& given) const {
  if (before == nullptr) {
    Pending p = given;
    p.x = std::move(x.x);
    p.mean = std::move(x.mean);
    p.var = std::move(x.var);
    return p;
  }
  Pending p = before->pass(std::move(x), then_before, left_by != nullptr ? left_by->bias_left() : Tensor());
  before->tell_observers(p.x.shape(), p.any());
  if (activation_before != nullptr) activation_before->tell_observers(p.x.shape(), p.any());
  return p;
}

Tensor Stage::compute(Tensor x) const {
  if (pool != nullptr) return pooling->forward(std::move(x), then, pool->options());
  return fused != nullptr ? fused->forward(std::move(x), then) : module->forward(std::move(x));
}

Shape Stage::unpooled(const Shape& x) const {
  const Module* at = module;
  try {
    const Shape made = pooling->unpooled(x);
    at = pool;
    max_pool2d_shape(made, pool->options());
    return made;
  } catch (const Error& e) {
    throw Error(str(e.what(), " (in module ", at->path(), ")"));
  }
}

schedule::Activation Stage::operator()(schedule::Activation x, const Pending& given) const {
  if (nested != nullptr) return nested->run(inside, std::move(x), given);
  if (loading != nullptr) {
    Pending p = load(std::move(x));
    const PathLabel label(*module);
    Tensor y = loading->load(std::move(p));
    module->tell_observers(y.shape());
    return {std::move(y)};
  }
  if (convolution == nullptr && block == nullptr) {
    const Shape before_pool = pool != nullptr ? unpooled(x.x.shape()) : Shape{};
    Tensor y = module->call(std::move(x.x), this);
    const Shape& made = pool != nullptr ? before_pool : y.shape();
    module->tell_observers(made);
    if (activation != nullptr) activation->tell_observers(made, true);
    if (pool != nullptr) pool->tell_observers(y.shape(), true);
    return {std::move(y)};
  }
  const bool statistics =
      (wanted_by != nullptr && wanted_by->training()) || (wanted_too != nullptr && wanted_too->wants_statistics());
  depends_on(statistics, "train() or eval()");
  schedule::Activation y;
  if (block != nullptr) {
    const PathLabel label(*module);
    y = block->pass(std::move(x), statistics);
  } else {
    if (wanted_by == nullptr && convolution->bias_left().defined())
      fail(str(path(), ": this convolution was given a bias after its net had run; give it one before, or call net.fuse() again"));
    y = convolution->pass(load(std::move(x), given), statistics, {});
  }
  module->tell_observers(y.x.shape());
  if (after == nullptr) return y;
  Tensor z;
  {
    const PathLabel label(*after);
    z = settle(after->pass(std::move(y), then, convolution != nullptr ? convolution->bias_left() : Tensor()));
  }
  after->tell_observers(z.shape());
  if (activation != nullptr) activation->tell_observers(z.shape(), true);
  return {std::move(z)};
}

std::vector<Sequential*> Sequential::chains() {
  // Not for a class derived from Sequential, whose forward() may do more.
  return typeid(*this) == typeid(Sequential) ? std::vector{this} : std::vector<Sequential*>{};
}

struct Sequential::Part {
  Module* module;
  std::vector<Sequential*> told;  // the chains around it, inside this one, that were told themselves what to recompute
};

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
  if (taken_apart_version_ == structure_version()) return taken_apart_;
  std::vector<Sequential*> all{this};
  for (std::size_t i = 0; i < all.size(); ++i)
    for (const Child& c : all[i]->children_)
      for (Sequential* s : c.module->chains()) all.push_back(s);
  taken_apart_ = std::move(all);
  taken_apart_version_ = structure_version();
  return taken_apart_;
}

namespace {

/// Appends a stage, inside the chains that it belongs to.
void place(std::vector<Stage>& chain, std::span<Sequential* const> told, Stage stage) {
  if (told.empty()) return chain.push_back(std::move(stage));
  if (chain.empty() || chain.back().nested != told.front()) chain.push_back({.nested = told.front()});
  place(chain.back().inside, told.subspan(1), std::move(stage));
}

}  // namespace

std::vector<Stage> Sequential::group(bool open) const {
  std::vector<Part> parts;
  std::vector<Sequential*> told;
  append_parts(parts, told);
  const std::size_t n = parts.size();
  const auto norm_at = [&](std::size_t i) {
    auto* norm = i < n ? dynamic_cast<BatchNorm2d*>(parts[i].module) : nullptr;
    return norm != nullptr && norm->fusing() ? norm : nullptr;
  };
  const auto passes_at = [&]<class T>(std::size_t i, T*) {
    T* module = i < n ? dynamic_cast<T*>(parts[i].module) : nullptr;
    if (module == nullptr || !module->passes()) return static_cast<T*>(nullptr);
    parts[i].module->refuse_budget();
    return module;
  };
  // A bias is left to the normalisation that follows, so there has to be one.
  const auto convolution_at = [&](std::size_t i) {
    Passing* const c = passes_at(i, static_cast<Passing*>(nullptr));
    return c != nullptr && c->bias_left().defined() && norm_at(i + 1) == nullptr ? nullptr : c;
  };
  const auto loading_at = [&](std::size_t i) { return passes_at(i, static_cast<Loading*>(nullptr)); };
  const auto block_at = [&](std::size_t i) { return passes_at(i, static_cast<Normalising*>(nullptr)); };

  std::vector<Stage> chain;
  Stage pending;  // its `before` is due
  for (std::size_t i = 0; i < n; ++i) {
    Stage stage = std::exchange(pending, {});
    stage.module = parts[i].module;
    const std::vector<Sequential*>& owners = parts[i].told;
    stage.convolution = convolution_at(i);
    if (stage.convolution == nullptr) stage.block = block_at(i);
    const bool passes = stage.convolution != nullptr || stage.block != nullptr;
    stage.wanted_by = passes ? norm_at(i + 1) : nullptr;
    stage.wanted_too = passes ? block_at(i + 1) : nullptr;
    stage.loading = !passes && stage.before != nullptr ? loading_at(i) : nullptr;
    if (passes && stage.wanted_by == nullptr && stage.wanted_too == nullptr && stage.before == nullptr && stage.block == nullptr)
      stage.convolution = nullptr;  // nothing to be had: the plain op can take a bias and an activation along
    if (stage.wanted_by != nullptr) {
      BatchNorm2d* const norm = stage.wanted_by;
      const Epilogue then = i + 2 < n ? pending_epilogue_of(parts[i + 2].module) : Epilogue::none;
      Module* const activation = then != Epilogue::none ? parts[i + 2].module : nullptr;
      i += activation != nullptr ? 2 : 1;
      if (convolution_at(i + 1) != nullptr || loading_at(i + 1) != nullptr || (open && i + 1 == n)) {
        pending.before = norm;
        pending.left_by = stage.convolution;
        pending.activation_before = activation;
        pending.then_before = then;
      } else {
        stage.after = norm;
        stage.activation = activation;
        stage.then = then;
      }
    } else if (stage.convolution == nullptr && stage.block == nullptr && stage.loading == nullptr) {
      stage.fused = dynamic_cast<Fusible*>(stage.module);
      stage.then = stage.fused != nullptr && i + 1 < n ? epilogue_of(parts[i + 1].module) : Epilogue::none;
      if (stage.then != Epilogue::none)
        stage.activation = parts[++i].module;
      else
        stage.fused = nullptr;
      auto* const pooling = dynamic_cast<Pooling*>(stage.module);
      auto* const pool = pooling != nullptr && i + 1 < n ? dynamic_cast<MaxPool2d*>(parts[i + 1].module) : nullptr;
      if (pool != nullptr && pool->fusing() && stage.module->fusing()) {
        stage.pooling = pooling;
        stage.pool = pool;
        ++i;
      }
    }
    place(chain, owners, std::move(stage));
  }
  if (pending.before != nullptr) chain.push_back(std::move(pending));  // left to the caller
  return chain;
}

const std::vector<Stage>& Sequential::stages(bool open) const {
  Grouped& g = grouped_[open ? 1 : 0];
  if (g.version != structure_version()) g = {structure_version(), group(open)};
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
  return run(stages(false), {std::move(x)}).x;
}

Pending Sequential::forward_pending(Pending p) {
  refuse_budget();
  if (p.any() && !takes_pending()) fail("Sequential: nothing here takes a pending normalisation; settle() it first");
  if (probe_ != nullptr) *std::exchange(probe_, nullptr) = p.any() ? settle(p) : p.x;
  std::span<const Stage> chain = stages(true);
  const Stage* last = !chain.empty() && chain.back().path() == nullptr ? &chain.back() : nullptr;
  if (last != nullptr) chain = chain.first(chain.size() - 1);
  schedule::Activation x{std::move(p.x), std::move(p.mean), std::move(p.var)};
  x = run(chain, std::move(x), p);
  return last != nullptr ? last->load(std::move(x)) : Pending{std::move(x.x)};
}

bool Sequential::takes_pending() const {
  const std::vector<Stage>& chain = stages(true);
  if (chain.empty()) return false;
  const Stage* first = &chain.front();
  while (first->nested != nullptr) first = &first->inside.front();
  return first->convolution != nullptr;
}

schedule::Activation Sequential::run(std::span<const Stage> chain, schedule::Activation x, const Pending& given) {
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
