#include <rewind/nn/layers.h>
#include <rewind/nn/sequential.h>
#include <rewind/nn/stage.h>

#include <span>
#include <utility>

namespace rewind_lib::nn {
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

Tensor bias_left_by(const GivesStatistics* convolution) { return convolution != nullptr ? convolution->bias_left() : Tensor(); }

/// The end of a stage that gives statistics: its result, normalised where no convolution follows to do that.
schedule::Value finish(Module& module, schedule::Value y, const std::optional<Normalisation>& after) {
  module.tell_observers(y.x.shape());
  if (!after) return y;
  return {after->done(std::move(y))};
}

}  // namespace

Pending Normalisation::left(schedule::Value x) const {
  Pending p = norm->pass(std::move(x), then, bias_left_by(before));
  norm->tell_observers(p.x.shape(), p.any());
  if (activation != nullptr) activation->tell_observers(p.x.shape(), p.any());
  return p;
}

Tensor Normalisation::done(schedule::Value x) const {
  Tensor y;
  {
    const PathLabel label(*norm);
    y = settle(norm->pass(std::move(x), then, bias_left_by(before)));
  }
  norm->tell_observers(y.shape());
  if (activation != nullptr) activation->tell_observers(y.shape(), true);
  return y;
}

Shape Stage::Plain::unpooled(const Shape& x) const {
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

schedule::Value Stage::Plain::run(schedule::Value x, const Pending&) const {
  const Shape before_pool = pool != nullptr ? unpooled(x.x.shape()) : Shape{};
  Tensor y;
  {
    const Module::Call call(*module, x.x);
    if (pool != nullptr)
      y = pooling->forward(std::move(x.x), then, pool->options());
    else
      y = activation != nullptr ? applies->forward(std::move(x.x), then) : module->forward(std::move(x.x));
  }
  const Shape& made = pool != nullptr ? before_pool : y.shape();
  module->tell_observers(made);
  if (activation != nullptr) activation->tell_observers(made, true);
  if (pool != nullptr) pool->tell_observers(y.shape(), true);
  return {std::move(y)};
}

schedule::Value Stage::OnLoad::run(schedule::Value x, const Pending&) const {
  Pending p = before.left(std::move(x));
  const PathLabel label(*module);
  Tensor y = loads->load(std::move(p));
  module->tell_observers(y.shape());
  return {std::move(y)};
}

bool Stage::Next::wants_statistics() const {
  const bool wanted = (norm != nullptr && norm->training()) || (block != nullptr && block->wants_statistics());
  depends_on(wanted, "train() or eval()");
  return wanted;
}

schedule::Value Stage::Convolution::run(schedule::Value x, const Pending& given) const {
  const bool statistics = next.wants_statistics();
  if (next.norm == nullptr && convolution->bias_left().defined())
    fail(str(module->path(),
             ": this convolution was given a bias after its net had run; give it one before, or call net.fuse() again"));
  Pending p;
  if (before) {
    p = before->left(std::move(x));
  } else {
    p = given;
    p.x = std::move(x.x);
    p.mean = std::move(x.mean);
    p.var = std::move(x.var);
  }
  return finish(*module, convolution->pass(std::move(p), statistics, {}), after);
}

schedule::Value Stage::Block::run(schedule::Value x, const Pending&) const {
  const bool statistics = next.wants_statistics();
  schedule::Value y;
  {
    const PathLabel label(*module);
    y = block->pass(std::move(x), statistics);
  }
  return finish(*module, std::move(y), after);
}

schedule::Value Stage::Nested::run(schedule::Value x, const Pending& given) const {
  return module->run(inside, std::move(x), given);
}

schedule::Value Stage::operator()(schedule::Value x, const Pending& given) const {
  return std::visit([&](const auto& kind) { return kind.run(std::move(x), given); }, kind_);
}

const char* Stage::path() const {
  return std::visit([](const auto& kind) { return kind.module->path(); }, kind_);
}

bool Stage::takes_pending() const {
  if (const auto* nested = std::get_if<Nested>(&kind_)) return nested->inside.front().takes_pending();
  return std::holds_alternative<Convolution>(kind_);
}

/// Joins parts to stages, one after the other.
class Stage::Grouping {
 public:
  Grouping(const std::vector<Part>& parts, bool open) : parts_(parts), open_(open) {}

  ChainStages all() && {
    ChainStages made;
    while (at_ < parts_.size()) {
      const std::vector<Sequential*>& told = parts_[at_].told;
      place(made.all, told, Stage(next()));
    }
    made.left = due_;
    return made;
  }

 private:
  /// Part i, when it is a T.
  template <class T>
  T* part(std::size_t i) const {
    return i < parts_.size() ? dynamic_cast<T*>(parts_[i].module) : nullptr;
  }
  template <class T>
  T* fusible(std::size_t i) const {
    T* const module = part<T>(i);
    return module != nullptr && module->can_fuse() ? module : nullptr;
  }
  BatchNorm2d* norm(std::size_t i) const {
    auto* const norm = part<BatchNorm2d>(i);
    return norm != nullptr && norm->fusing() ? norm : nullptr;
  }
  /// A bias is left to the normalisation that follows, so there has to be one.
  GivesStatistics* convolution(std::size_t i) const {
    auto* const c = fusible<GivesStatistics>(i);
    return c != nullptr && c->bias_left().defined() && norm(i + 1) == nullptr ? nullptr : c;
  }
  /// Runs without a call of its own.
  Module* joined(std::size_t i) const {
    parts_[i].module->refuse_budget();
    return parts_[i].module;
  }

  Kind next() {
    const std::size_t i = at_++;
    const std::optional<Normalisation> before = std::exchange(due_, std::nullopt);
    const Next follows{.norm = norm(i + 1), .block = fusible<TakesStatistics>(i + 1)};
    const bool joins = before || follows.norm != nullptr || follows.block != nullptr;
    if (GivesStatistics* const c = convolution(i); c != nullptr && joins)
      return Convolution{before, joined(i), c, follows, normalisation(c)};
    if (before) return OnLoad{*before, joined(i), fusible<TakesNormalisation>(i)};
    if (auto* const block = fusible<TakesStatistics>(i)) return Block{joined(i), block, follows, normalisation(nullptr)};
    return plain(i);
  }

  /// The normalisation that comes next, if one does: to be done here, or due where the next one does it on load.
  std::optional<Normalisation> normalisation(const GivesStatistics* before) {
    BatchNorm2d* const found = norm(at_);
    if (found == nullptr) return std::nullopt;
    ++at_;
    Normalisation n{.norm = found, .before = before};
    if (auto* const activation = part<Module>(at_)) n.then = pending_epilogue_of(activation);
    if (n.then != Epilogue::none) n.activation = parts_[at_++].module;
    const bool last = at_ == parts_.size();
    if (convolution(at_) == nullptr && fusible<TakesNormalisation>(at_) == nullptr && !(open_ && last)) return n;
    due_ = n;
    return std::nullopt;
  }

  Plain plain(std::size_t i) {
    Plain p{.module = parts_[i].module, .applies = part<TakesActivation>(i)};
    if (auto* const activation = part<Module>(at_); p.applies != nullptr && activation != nullptr) p.then = epilogue_of(activation);
    if (p.then != Epilogue::none) p.activation = parts_[at_++].module;
    auto* const pooling = part<TakesPool>(i);
    auto* const pool = part<MaxPool2d>(at_);
    if (pooling != nullptr && pool != nullptr && pool->fusing() && p.module->fusing()) {
      p.pooling = pooling;
      p.pool = pool;
      ++at_;
    }
    return p;
  }

  /// Appends a stage, inside the chains that it belongs to.
  static void place(std::vector<Stage>& chain, std::span<Sequential* const> told, Stage stage) {
    if (told.empty()) return chain.push_back(std::move(stage));
    const auto* const last = chain.empty() ? nullptr : std::get_if<Nested>(&chain.back().kind_);
    if (last == nullptr || last->module != told.front()) chain.push_back(Stage(Nested{told.front(), {}}));
    place(std::get<Nested>(chain.back().kind_).inside, told.subspan(1), std::move(stage));
  }

  const std::vector<Part>& parts_;
  bool open_;
  std::size_t at_ = 0;                // the next part
  std::optional<Normalisation> due_;  // for the next stage, on load
};

ChainStages Stage::group(const std::vector<Part>& parts, bool open) { return Grouping(parts, open).all(); }

}  // namespace rewind_lib::nn
