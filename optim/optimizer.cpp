#include <rewind/autograd/grad_mode.h>
#include <rewind/optim/ops.h>
#include <rewind/optim/optimizer.h>

#include <algorithm>
#include <cmath>

namespace rewind_lib::optim {
namespace {

std::string described(const Parameter& p) { return str("parameter ", p.name.empty() ? "(no name)" : p.name); }

void check_rate(const char* optimizer, double lr) {
  if (!(lr >= 0) || std::isinf(lr)) fail(str(optimizer, ": the learning rate must be finite and not negative, got ", lr));
}

/// State that a dry run left behind: it was counted there, has no bytes, and does not exist outside.
bool left_by_dry_run(const Tensor& state) { return state.defined() && is_stale(*state.impl().storage); }

}  // namespace

void Optimizer::add_parameters(std::vector<Parameter> parameters, double lr) {
  check_rate(name_, lr);
  if (parameters.empty()) fail(str(name_, ": got no parameters to optimize"));
  for (const Parameter& p : parameters) {
    if (!p.value.defined()) fail(str(name_, ": ", described(p), " is undefined (default-constructed or moved from)"));
    if (!is_float(p.value.dtype()))
      fail(str(name_, ": ", described(p), " is ", p.value.dtype(), " ", p.value.shape(),
               "; only float32 and float64 can be optimized"));
    if (!p.value.is_leaf())
      fail(str(name_, ": ", described(p), ", shape ", p.value.shape(),
               ", was computed by a recorded op; optimize the leaves that it was computed from, or detach() it"));
  }

  std::vector<const detail::TensorImpl*> known;
  known.reserve(members_.size() + parameters.size());
  for (const Member& m : members_) known.push_back(&m.parameter.value.impl());
  for (const Parameter& p : parameters) known.push_back(&p.value.impl());
  std::ranges::sort(known);
  if (const auto twice = std::ranges::adjacent_find(known); twice != known.end()) {
    const auto p = std::ranges::find(parameters, *twice, [](const Parameter& q) { return &q.value.impl(); });
    fail(str(name_, ": ", described(*p), ", shape ", p->value.shape(),
             ", is given twice, in one group or in two; it would move twice a step"));
  }

  members_.reserve(members_.size() + parameters.size());
  const int group = groups();
  rates_.push_back({lr, lr});
  for (Parameter& p : parameters) members_.push_back({std::move(p), group});
}

std::vector<Parameter> Optimizer::name_by_position(std::vector<Tensor> tensors) const {
  std::vector<Parameter> parameters;
  parameters.reserve(tensors.size());
  for (Tensor& t : tensors) parameters.push_back({std::to_string(members_.size() + parameters.size()), std::move(t)});
  return parameters;
}

void Optimizer::allocate(Member& member) {
  const LocationScope label(&Location::op, name_);
  const memory::CategoryScope category(Category::optimizer_state);
  const auto names = slots(member.group);
  if (names.size() > max_slots) fail(str(name_, ": a parameter has at most ", max_slots, " tensors of state, not ", names.size()));
  for (std::size_t s = 0; s < names.size(); ++s) {
    Tensor& state = member.slot[s];
    if (left_by_dry_run(state)) state = Tensor();
    if (!state.defined()) state = zeros(member.parameter.value.shape(), member.parameter.value.dtype());
  }
  member.ready = !DryLedger::active();
}

// Most parameters are small, and a step waits for what describes them. One record says where the next lies, so of each of the
// members ahead one record more is asked for.
void Optimizer::fetch_ahead(std::size_t i) const {
  const auto member = [&](std::size_t ahead) { return i + ahead < members_.size() ? &members_[i + ahead] : nullptr; };
  const auto gradient = [&](std::size_t ahead) {
    const Member* m = member(ahead);
    return m == nullptr ? nullptr : m->parameter.value.impl().grad;
  };
  if (const Member* m = member(4)) {
    detail::fetch(m->parameter.value);
    for (const Tensor& state : m->slot) detail::fetch(state);
  }
  if (const detail::TensorImpl* g = gradient(3)) detail::fetch(g);
  if (const detail::TensorImpl* g = gradient(2)) detail::fetch(g->storage, sizeof(Storage));
  if (const detail::TensorImpl* g = gradient(1)) detail::fetch(g->storage->block, sizeof(Arena::Block));
}

void Optimizer::step() {
  const NoGrad no_grad;
  for (Member& m : members_)
    if (!m.ready && m.parameter.value.impl().grad != nullptr) allocate(m);

  const bool dry = DryLedger::active();
  for (std::size_t i = 0; i < members_.size(); ++i) {
    fetch_ahead(i);
    Member& m = members_[i];
    const Tensor& value = m.parameter.value;
    if (value.impl().grad == nullptr) continue;
    const std::size_t count = slots(m.group).size();
    Tensor in[2 + max_slots] = {value, value.grad()};
    for (std::size_t s = 0; s < count; ++s) in[2 + s] = m.slot[s];
    update({std::span(in, 2 + count), m.group, m.updates + 1, learning_rate(m.group)});
    if (!dry) ++m.updates;
    value.set_grad({});
  }
  if (!dry) ++steps_;
}

void Optimizer::zero_grad() {
  for (const Member& m : members_) m.parameter.value.set_grad({});
}

const Optimizer::Rate& Optimizer::rate(int group) const {
  if (group < 0 || group >= groups()) fail(str(name_, ": there is no group ", group, ", only ", groups()));
  return rates_[static_cast<std::size_t>(group)];
}

void Optimizer::set_learning_rate(int group, double lr) {
  check_rate(name_, lr);
  static_cast<void>(rate(group));
  rates_[static_cast<std::size_t>(group)] = {lr, lr};
}

void Optimizer::set_learning_rate(double lr) {
  check_rate(name_, lr);
  for (Rate& r : rates_) r = {lr, lr};
}

void Optimizer::scale_learning_rate(double factor) {
  for (const Rate& r : rates_) check_rate(name_, factor * r.given);
  for (Rate& r : rates_) r.now = factor * r.given;
}

std::vector<SlotBytes> Optimizer::state_bytes_by_slot() const {
  std::vector<SlotBytes> result;
  for (const Member& m : members_) {
    const auto names = slots(m.group);
    for (std::size_t s = 0; s < names.size(); ++s) {
      auto at = std::ranges::find(result, std::string_view(names[s]), &SlotBytes::slot);
      if (at == result.end()) at = result.insert(at, {names[s], 0});
      if (m.slot[s].defined() && !left_by_dry_run(m.slot[s])) at->bytes += m.slot[s].bytes();
    }
  }
  return result;
}

std::size_t Optimizer::state_bytes() const {
  std::size_t bytes = 0;
  for (const SlotBytes& s : state_bytes_by_slot()) bytes += s.bytes;
  return bytes;
}

const Optimizer::Member& Optimizer::find(std::string_view parameter) const {
  const Member* found = nullptr;
  for (const Member& m : members_) {
    if (m.parameter.name != parameter) continue;
    if (found != nullptr) fail(str(name_, ": more than one parameter is called ", parameter, "; give them names of their own"));
    found = &m;
  }
  if (found == nullptr) fail(str(name_, ": no parameter is called ", parameter));
  return *found;
}

Tensor Optimizer::state(std::string_view parameter, std::string_view slot) const {
  const Member& m = find(parameter);
  const auto names = slots(m.group);
  const auto at = std::ranges::find(names, slot);
  if (at == names.end()) fail(str(name_, ": ", described(m.parameter), " has no state called ", slot));
  const Tensor& state = m.slot[static_cast<std::size_t>(at - names.begin())];
  return left_by_dry_run(state) ? Tensor() : state;
}

std::int64_t Optimizer::updates(std::string_view parameter) const { return find(parameter).updates; }

void Optimizer::check_resumes(std::int64_t count) const {
  if (count < 0) fail(str(name_, ": cannot resume from a count of ", count, ", which must not be negative"));
  if (DryLedger::active()) fail(str(name_, ": resumes training, which a dry run does not do; call resume() outside"));
}

void Optimizer::resume(std::int64_t steps) {
  check_resumes(steps);
  steps_ = steps;
}

void Optimizer::resume(std::string_view parameter, std::int64_t updates) {
  check_resumes(updates);
  Member& m = members_[static_cast<std::size_t>(&find(parameter) - members_.data())];
  if (updates > 0 && !m.ready) allocate(m);
  m.updates = updates;
}

namespace {

// Copies are kept beside the tracker: what is measured meanwhile is the step, not the trial.
std::vector<std::byte> bytes_in(const Tensor& t) { return {t.raw<const std::byte>(), t.raw<const std::byte>() + t.bytes()}; }

void put_back(const std::vector<std::byte>& bytes, const Tensor& t) {
  std::ranges::copy(bytes, t.raw<std::byte>());
  ++t.impl().storage->version;
}

}  // namespace

Optimizer::Trial::Trial(Optimizer& optimizer) : optimizer_(optimizer), steps_(optimizer.steps_) {
  for (const Member& m : optimizer_.members_)
    if (const Tensor& value = m.parameter.value; value.raw<std::byte>() == nullptr)
      fail(str(optimizer.name_, ": ", described(m.parameter), ", ", value.dtype(), " ", value.shape(),
               ", was made in a dry run, which is over; make the net outside"));
  members_.resize(optimizer_.members_.size());
  for (std::size_t i = 0; i < members_.size(); ++i) {
    const Member& m = optimizer_.members_[i];
    Kept& kept = members_[i];
    kept.updates = m.updates;
    kept.value = bytes_in(m.parameter.value);
    for (int s = 0; s < max_slots; ++s)
      if (m.slot[s].defined() && !left_by_dry_run(m.slot[s])) kept.slot[s] = bytes_in(m.slot[s]);
  }
  for (std::size_t i = 0; i < members_.size(); ++i) members_[i].gradient = optimizer_.members_[i].parameter.value.take_grad();
}

Optimizer::Trial::~Trial() {
  optimizer_.steps_ = steps_;
  for (std::size_t i = 0; i < members_.size(); ++i) {
    Member& m = optimizer_.members_[i];
    Kept& kept = members_[i];
    m.updates = kept.updates;
    put_back(kept.value, m.parameter.value);
    m.parameter.value.set_grad(std::move(kept.gradient));
    for (int s = 0; s < max_slots; ++s) {
      if (kept.slot[s].empty()) {
        m.slot[s] = Tensor();
        m.ready = false;
      } else {
        put_back(kept.slot[s], m.slot[s]);
      }
    }
  }
}

}  // namespace rewind_lib::optim
