#include <rewind/autograd/checkpoint.h>
#include <rewind/nn/layers.h>
#include <rewind/nn/sequential.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <memory>
#include <typeinfo>

namespace rewind_lib::nn {

Recompute Recompute::parse(std::string_view text) {
  if (text == "vanilla") return vanilla();
  if (text == "sqrt") return sqrt();
  constexpr std::string_view prefix = "segments:";
  if (text.starts_with(prefix)) {
    int k = 0;
    const char* end = text.data() + text.size();
    if (const auto r = std::from_chars(text.data() + prefix.size(), end, k); r.ec == std::errc() && r.ptr == end && k >= 1)
      return segments(k);
  }
  fail(str("recompute: unknown strategy '", text, "'; known are vanilla, sqrt and segments:K with K >= 1"));
}

int Recompute::segment_count(int stages) const {
  switch (kind_) {
    case Kind::vanilla: return 1;
    case Kind::sqrt: return std::max(1, static_cast<int>(std::lround(std::sqrt(static_cast<double>(stages)))));
    case Kind::segments: break;
  }
  if (count_ < 1 || count_ > stages)
    fail(str("recompute: ", count_, " segments do not divide a chain of ", stages, " stages; choose 1 to ", stages));
  return count_;
}

Sequential::Sequential(Sequential&& other) noexcept
    : Module(std::move(other)), children_(std::exchange(other.children_, {})), recompute_(other.recompute_) {}

Sequential& Sequential::operator=(Sequential&& other) noexcept {
  if (this == &other) return *this;
  clear();
  Module::operator=(std::move(other));
  children_ = std::exchange(other.children_, {});
  recompute_ = other.recompute_;
  return *this;
}

Sequential::~Sequential() { clear(); }

void Sequential::clear() {
  for (const Child& c : children_) delete c.module;
  children_.clear();
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

void Sequential::append_modules(std::vector<Module*>& all) const {
  for (const Child& c : children_) {
    // Not a class derived from Sequential, whose forward() may do more.
    const auto* inner = typeid(*c.module) == typeid(Sequential) ? static_cast<const Sequential*>(c.module) : nullptr;
    if (inner != nullptr && inner->recompute_.keeps_everything()) {
      inner->append_modules(all);
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

Tensor Sequential::forward(Tensor x) {
  const auto run = [](std::span<const Stage> part, Tensor h) {
    for (const Stage& stage : part) h = stage(std::move(h));
    return h;
  };
  const std::vector<Stage> chain = stages();
  const std::size_t n = chain.size(), k = n == 0 ? 1 : static_cast<std::size_t>(recompute_.segment_count(static_cast<int>(n)));
  for (std::size_t s = 0; s + 1 < k; ++s) {
    const std::vector<Stage> part(chain.begin() + static_cast<std::ptrdiff_t>(s * n / k),
                                  chain.begin() + static_cast<std::ptrdiff_t>((s + 1) * n / k));
    x = checkpoint([=](Tensor h) { return run(part, std::move(h)); }, std::move(x));
  }
  return run(std::span(chain).subspan((k - 1) * n / k), std::move(x));
}

void Sequential::describe(Fields& f) {
  for (const Child& c : children_) f.child(c.name, *c.module);
}

}  // namespace rewind_lib::nn
